"""A faster gradient for the last convolutions on a CPU in bfloat16.

TensorFlow's own gradient of the kernel of a 3 × 3 convolution is slow on small feature maps. Computed as
nine matrix products, one per position in the kernel, it is up to three times as fast (benchmarks/README.md). The
values differ only by rounding.
"""

from typing import Any

import keras

from medtransfer.core.hardware import processor_has_slow_bfloat16
from medtransfer.training.device import accelerators

# The largest side of a feature map for which nine products are faster.
MAX_SIDE = 14


def use_fast_gradients(model: keras.Model) -> int:
    """Use the faster gradient for trainable convolutions on small feature maps; return their number.

    Saving and loading do not change. Nothing changes on other backends, on a GPU, in float32, or on a processor that
    is slow in bfloat16.
    """
    if keras.backend.backend() != "tensorflow" or accelerators() or processor_has_slow_bfloat16():
        return 0
    changed = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.trainable and layer.compute_dtype == "bfloat16":
            _, height, width, _ = layer.output.shape
            if max(height, width) <= MAX_SIDE and layer.kernel_size == (3, 3) and layer.padding == "same":
                layer.convolution_op = _convolve
                changed += 1
    return changed


def _convolve(inputs: Any, kernel: Any) -> Any:
    """Convolve (B, H, W, C) with a kernel (3, 3, C, D), stride 1, same padding, to (B, H, W, D)."""
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolve(x: Any, weights: Any) -> Any:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            of_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=weights, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
            )
            return of_inputs, _gradient_of_kernel(x, upstream)

        return tf.nn.conv2d(x, weights, 1, "SAME"), gradient

    return convolve(inputs, tf.cast(keras.ops.convert_to_tensor(kernel), inputs.dtype))


def _gradient_of_kernel(x: Any, upstream: Any) -> Any:
    import tensorflow as tf

    height, width, channels = x.shape[1:]
    padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    flat = tf.reshape(upstream, (-1, upstream.shape[-1]))  # (B · H · W, D)
    products = [
        tf.matmul(tf.reshape(padded[:, i : i + height, j : j + width], (-1, channels)), flat, transpose_a=True)
        for i in range(3)
        for j in range(3)
    ]
    return tf.reshape(tf.stack(products), (3, 3, channels, upstream.shape[-1]))
