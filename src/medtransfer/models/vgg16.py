"""VGG16 and its classification head.

Simonyan and Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, configuration D.
"""

import json
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import keras
import numpy as np

from medtransfer.core.errors import UserError, shortened
from medtransfer.core.recipe import TrainParams
from medtransfer.models.convolution import use_fast_convolutions
from medtransfer.models.freezing import HEAD, block_of, weighted_layers

# The means that Keras's VGG16 preprocessing ('caffe') subtracts, for blue, green and red.
IMAGENET_MEANS_BGR = (103.939, 116.779, 123.68)


def build_vgg16(image_size: int, classes: int, train: TrainParams, seed: int) -> keras.Model:
    """Build VGG16 with a new classification head, all weights drawn from `seed`.

    The talk's head: flatten, two dense layers, each followed by dropout, and a dense softmax layer. The pooled head:
    global average, dropout and the softmax layer. The names of the head's layers start with `head_`; the base has the
    names of `keras.applications` (`block5_conv3`).

    Returns
    -------
    keras.Model
        Input (batch, image_size, image_size, 3), uint8 pixels 0-255; output (batch, classes), float32 probabilities.
    """
    keras.config.set_dtype_policy(train.precision)
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((image_size, image_size, 3), dtype="uint8", name="pixels")  # (B, S, S, 3) uint8
    x = _scale(pixels, train.scaling)  # (B, S, S, 3)
    base = keras.applications.VGG16(include_top=False, weights=None, input_tensor=x)
    if train.head == "pooled":
        x = keras.layers.GlobalAveragePooling2D(name="head_pool")(base.output)  # (B, 512)
        x = keras.layers.Dropout(train.dropout, name="head_dropout")(x)
    else:
        x = keras.layers.Flatten(name="head_flatten")(base.output)  # (B, (S // 32)² · 512)
        for number, units in enumerate(train.dense_units, start=1):
            x = keras.layers.Dense(units, activation="relu", name=f"head_dense{number}")(x)
            x = keras.layers.Dropout(train.dropout, name=f"head_dropout{number}")(x)
    # Always float32: bfloat16 has too few digits for a softmax.
    x = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="head_output")(x)  # (B, classes)
    model = keras.Model(pixels, x, name="vgg16")
    use_fast_convolutions(model)
    return model


def _scale(pixels: keras.KerasTensor, scaling: str) -> keras.KerasTensor:
    if scaling == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1, dtype="float32", name="scale_to_one")(pixels)
    x = keras.layers.Rescaling(1.0, dtype="float32", name="to_float")(pixels)
    x = keras.ops.flip(x, axis=-1)
    return keras.layers.Normalization(
        mean=IMAGENET_MEANS_BGR, variance=(1.0, 1.0, 1.0), dtype="float32", name="subtract_imagenet_means"
    )(x)


def load_network(path: Path) -> keras.Model:
    """Read a network that a fit saved; a UserError if this project did not save it or it contains code."""
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        base_layers(model)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, BadZipFile) as error:
        written = _keras_of(path)
        if written != keras.__version__ and written:
            raise UserError(
                f"{path}: Keras {written} wrote it, and Keras {keras.__version__} cannot read it ({shortened(error)}); "
                f"install Keras {written} or a newer 3.x (`pip install keras=={written}`)"
            ) from None
        raise UserError(f"{path}: not a network saved by this project ({shortened(error)}); run `dvc repro`") from None
    use_fast_convolutions(model)
    return model


def _keras_of(path: Path) -> str:
    """Return the version of Keras that wrote a network; empty if the file does not say."""
    try:
        with ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, BadZipFile, KeyError, ValueError, TypeError):
        return ""


def base_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the 13 convolution layers in network order."""
    return [layer for layer in weighted_layers(model) if block_of(layer.name) != HEAD]


def get_base_weights(model: keras.Model) -> list[np.ndarray]:
    """Return the base's 26 tensors in layer order, each kernel (3, 3, in, out) before its bias (out,)."""
    return [np.asarray(tensor, np.float32) for layer in base_layers(model) for tensor in layer.get_weights()]


def set_base_weights(model: keras.Model, tensors: list[np.ndarray]) -> None:
    """Set the base's 26 tensors, given in the order of `get_base_weights`."""
    for layer, kernel, bias in zip(base_layers(model), tensors[::2], tensors[1::2], strict=True):
        layer.set_weights([kernel, bias])
