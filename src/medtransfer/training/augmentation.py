"""Random changes of the training images, on the device, as a part of the training step and not of the saved network."""

from typing import Any

import keras
import numpy as np

from medtransfer.core.recipe import Augmentation

RANGE = (0, 255)


class AugmentedNetwork(keras.Model):
    """A network that changes its images while it trains; it shares the network's weights.

    Parameters
    ----------
    network : keras.Model
        Pixels (batch, size, size, 3), uint8 → probabilities (batch, classes).
    settings : Augmentation
        With `mixup`, the labels must be one-hot, float32.
    seed : int
    """

    def __init__(self, network: keras.Model, settings: Augmentation, seed: int):
        super().__init__(dtype="float32", name="augmented")
        self.network = network
        self.changes = build_changes(settings, seed)
        self.mixup, self.mixing_seed = settings.mixup, keras.random.SeedGenerator(seed)
        self.share: Any = None  # of the first image of each pair, in this step

    def build(self, shape: Any) -> None:
        """Build the layers that change images; the network is already built."""
        for change in self.changes:
            change.build(shape)

    def call(self, pixels: Any, training: bool = False) -> Any:
        """Return probabilities (batch, classes)."""
        if not training:
            return self.network(pixels, training=False)
        x = keras.ops.cast(pixels, "float32")
        for change in self.changes:
            x = change(x, training=True)
        if self.mixup:
            x = self._mix_images(x)
        x = keras.ops.cast(keras.ops.round(keras.ops.clip(x, *RANGE)), "uint8")
        return self.network(x, training=True)

    def _mix_images(self, x: Any) -> Any:
        """Mix each image with its partner: the batch in reverse."""
        shape = (keras.ops.shape(x)[0], 1, 1, 1)
        self.share = keras.random.beta(shape, self.mixup, self.mixup, dtype="float32", seed=self.mixing_seed)
        return self.share * x + (1 - self.share) * keras.ops.flip(x, axis=0)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the loss; in training with `mixup`, labels are mixed as the images were."""
        if training and self.mixup:
            share = keras.ops.reshape(self.share, (-1, 1))
            y = share * y + (1 - share) * keras.ops.flip(y, axis=0)
        return super().compute_loss(x, y, y_pred, sample_weight, training)


def build_changes(settings: Augmentation, seed: int) -> list[keras.layers.Layer]:
    """Return the layers that change images, (batch, size, size, 3), float32, 0 to 255, in their order."""
    layers = keras.layers
    # With one seed for all, an image that is made brighter would always get more contrast too.
    seeds = iter(np.random.SeedSequence(seed).generate_state(9).tolist())
    brightness, contrast, saturation = settings.brightness, settings.contrast, settings.saturation
    changes = []
    if settings.flips != "none":
        # Keras's "horizontal_and_vertical" does both or neither; one flip and right angles give every orientation.
        changes.append(layers.RandomFlip("horizontal", seed=next(seeds), dtype="float32"))
    if settings.flips == "any" or settings.rotation or settings.crop < 1:
        changes.append(Warp(settings.flips == "any", settings.rotation, settings.crop, next(seeds)))
    if brightness:
        changes.append(Dim(brightness, next(seeds)))
    if contrast:
        factors = (contrast, contrast)
        changes.append(layers.RandomContrast(factors, value_range=RANGE, seed=next(seeds), dtype="float32"))
    if saturation:
        # Keras multiplies by f / (1 - f).
        factors = ((1 - saturation) / (2 - saturation), (1 + saturation) / (2 + saturation))
        changes.append(layers.RandomSaturation(factors, value_range=RANGE, seed=next(seeds), dtype="float32"))
    if settings.hue:
        factors = (0.0, 2 * settings.hue)  # 1 is half of the circle in either direction
        changes.append(layers.RandomHue(factors, value_range=RANGE, seed=next(seeds), dtype="float32"))
    if settings.cutout:
        changes.append(Cutout(settings.cutout, next(seeds)))
    return changes


class _Random(keras.layers.Layer):
    def __init__(self, seed: int):
        super().__init__(dtype="float32")
        self.generator = keras.random.SeedGenerator(seed)

    def draw(self, images: Any, low: float, high: float) -> Any:
        """Return a number for each image, (batch, 1)."""
        shape = (keras.ops.shape(images)[0], 1)
        return keras.random.uniform(shape, low, high, dtype="float32", seed=self.generator)


class Dim(_Random):
    """Multiply each image by 1 - x to 1 + x (Keras's RandomBrightness adds)."""

    def __init__(self, strength: float, seed: int):
        super().__init__(seed)
        self.strength = strength

    def call(self, images: Any, training: bool = True) -> Any:
        """Return the images, clipped."""
        factor = self.draw(images, 1 - self.strength, 1 + self.strength)[:, :, None, None]
        return keras.ops.clip(images * factor, *RANGE)


class Cutout(_Random):
    """Gray out a square somewhere in each image; its side is drawn (DeVries and Taylor, arXiv 1708.04552)."""

    def __init__(self, largest: float, seed: int):
        super().__init__(seed)
        self.largest = largest

    def call(self, images: Any, training: bool = True) -> Any:
        """Return the images."""
        places = keras.ops.arange(images.shape[1], dtype="float32")[None] / images.shape[1]  # (1, S)
        half = self.draw(images, 0, self.largest / 2)
        rows, columns = (keras.ops.abs(places - self.draw(images, 0, 1)) < half for _ in range(2))  # (B, S)
        inside = keras.ops.logical_and(rows[:, :, None], columns[:, None])[..., None]
        return keras.ops.where(inside, 127.5, images)


class Warp(_Random):
    """Turn, and cut out a square part and resize it to the whole, in one bilinear resampling.

    Keras's RandomRotation would turn off compilation on JAX.
    """

    def __init__(self, quarter_turns: bool, degrees: float, crop: float, seed: int):
        super().__init__(seed)
        self.quarter_turns, self.degrees, self.crop = quarter_turns, degrees, crop

    def call(self, images: Any, training: bool = True) -> Any:
        """Return the images; what lies outside is reflected."""
        ops, center = keras.ops, (images.shape[1] - 1) / 2
        angle = self.draw(images, -self.degrees, self.degrees) * np.pi / 180
        if self.quarter_turns:
            angle += ops.floor(self.draw(images, 0, 4)) * (np.pi / 2)
        side = self.draw(images, self.crop, 1)
        right, down = (self.draw(images, -1, 1) * (1 - side) * center for _ in range(2))
        cosine, sine = side * ops.cos(angle), side * ops.sin(angle)
        zero = ops.zeros_like(side)
        # Output (x, y) comes from input (a x + b y + c, d x + e y + f).
        matrix = [
            cosine, -sine, center - center * cosine + center * sine + right,
            sine, cosine, center - center * sine - center * cosine + down, zero, zero,
        ]  # fmt: skip
        return ops.image.affine_transform(
            images, ops.concatenate(matrix, axis=1), interpolation="bilinear", fill_mode="reflect"
        )
