"""The talk's picture of the first convolution layer's activations for one image."""

import keras
import numpy as np

FIRST_LAYER = "block1_conv1"


def first_layer_activations(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Return the first convolution's output, (size, size, 64), float32, for an image (size, size, 3), uint8."""
    layer = keras.Model(model.inputs, model.get_layer(FIRST_LAYER).output)
    return np.asarray(layer.predict(image[None], verbose=0)[0], np.float32)
