"""Where a network looked: Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2).

The libraries for it need TensorFlow and Keras 2; this also runs on JAX.
"""

import keras
import matplotlib
import numpy as np
from PIL import Image

LAST = "block5_conv3"  # the last convolution
MIN_POSITIONS = 4  # per side of a heat map: fewer do not show where a network looked


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how strongly each position of the images (n, size, size, 3), uint8, supports its class in `classes` (n,).

    The heat maps (n, h, w), float32, have the resolution of the last convolution. Their values are from 0 to 1: the
    maximum of each image is 1, or 0 if nothing supports the class.
    """
    last = model.get_layer(LAST).output
    maps = keras.Model(model.inputs, last)
    # The scores before the softmax: a probability close to 1 has hardly any gradient.
    rest = keras.Model(last, model.get_layer("head_output").input)
    kernel, bias = (np.asarray(weights, np.float32) for weights in model.get_layer("head_output").get_weights())
    outputs = keras.ops.convert_to_tensor(maps.predict_on_batch(np.asarray(images)))
    gradients = _gradients(rest, outputs, kernel, bias, classes)
    values = np.asarray(outputs, np.float32)
    importance = gradients.mean(axis=(1, 2), keepdims=True)  # (n, 1, 1, channels)
    heat = np.maximum((importance * values).sum(axis=-1), 0)  # (n, h, w)
    highest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


def why_unclear(height: int, width: int) -> str:
    """Return why heat maps with so many positions do not show where a network looked; empty if they do."""
    if min(height, width) >= MIN_POSITIONS:
        return ""
    return f"{height} × {width} positions are too few to show where the network looked"


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Return the image in grey, as RGB, overlaid with a heat map (h, w), from 0 to 1, in colour."""
    colors = (matplotlib.colormaps["inferno"](heat)[..., :3] * 255).astype(np.uint8)
    stretched = Image.fromarray(colors).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image.convert("L").convert("RGB"), stretched, 0.5)


def _gradients(
    rest: keras.Model, outputs: keras.KerasTensor, kernel: np.ndarray, bias: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Return the gradient of each image's score for its class, (n, h, w, channels), float32."""
    selected = np.eye(kernel.shape[1], dtype=np.float32)[classes]

    def score(hidden: keras.KerasTensor) -> keras.KerasTensor:
        scores = keras.ops.matmul(keras.ops.cast(hidden, "float32"), kernel) + bias
        return keras.ops.sum(scores * selected)

    if keras.backend.backend() == "jax":
        import jax

        weights = ([v.value for v in rest.trainable_variables], [v.value for v in rest.non_trainable_variables])

        def total(maps: jax.Array) -> jax.Array:
            hidden, _ = rest.stateless_call(*weights, maps, training=False)
            return score(hidden)

        return np.asarray(jax.grad(total)(outputs), np.float32)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(outputs)
        total_score = score(rest(outputs, training=False))
    return np.asarray(tape.gradient(total_score, outputs), np.float32)
