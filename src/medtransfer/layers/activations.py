"""The activations of the first convolution layer for one image, which the talk shows."""

import keras
import numpy as np

FIRST_LAYER = "block1_conv1"


def first_layer_activations(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Return the first convolution's output, (size, size, 64), float32, for an image (size, size, 3), uint8."""
    layer = keras.Model(model.inputs, model.get_layer(FIRST_LAYER).output)
    return np.asarray(layer.predict(image[None], verbose=0)[0], np.float32)
