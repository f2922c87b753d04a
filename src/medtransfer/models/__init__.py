"""VGG16 and its weights."""

import keras

# Keras's defaults, so that the user's keras.json changes no network.
keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_last")
keras.config.set_epsilon(1e-7)
