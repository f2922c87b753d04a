"""Convolutions in bfloat16 on a processor that is faster in float32."""

from typing import Any

import keras

from medtransfer.core.hardware import processor_has_slow_bfloat16


def use_fast_convolutions(model: keras.Model) -> None:
    """Let a bfloat16 network convolve in float32 if the processor is faster that way.

    A product of two bfloat16 values is exact in float32, and sums are in float32 either way, so the values differ only
    by rounding. Saving and loading do not change.
    """
    layers = [
        layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D) and layer.compute_dtype == "bfloat16"
    ]
    if layers and processor_has_slow_bfloat16():
        for layer in layers:
            layer.convolution_op = _convolve


def _convolve(inputs: Any, kernel: Any) -> Any:
    """Convolve (B, H, W, C) with a kernel (3, 3, C, D), stride 1, same padding, to (B, H, W, D)."""
    # The float32 kernel is rounded first, as the layer itself does.
    rounded = keras.ops.cast(kernel, inputs.dtype)
    outputs = keras.ops.conv(keras.ops.cast(inputs, "float32"), keras.ops.cast(rounded, "float32"), padding="same")
    return keras.ops.cast(outputs, inputs.dtype)
