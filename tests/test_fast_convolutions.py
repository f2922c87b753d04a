"""Convolutions and gradients in bfloat16: faster if the processor allows it, and equal up to rounding."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from medtransfer.core.recipe import TrainParams
from medtransfer.models import freezing, vgg16
from medtransfer.training.gradients import use_fast_gradients

SIZE, CLASSES = 32, 3


def set_processor(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    for module in ("models.convolution", "training.gradients"):
        monkeypatch.setattr(f"medtransfer.{module}.processor_has_slow_bfloat16", lambda: slow)


def norm_apart(one: tf.Tensor, other: tf.Tensor) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@pytest.mark.parametrize("size", [32, 64])
def test_the_fast_gradients_equal_keras_up_to_rounding(
    tiny: TrainParams, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_processor(monkeypatch, slow=False)
    params = tiny.model_copy(update={"precision": "mixed_bfloat16", "dropout": 0.0})
    pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    labels = np.arange(8) % CLASSES
    gradients, changed = [], []
    for fast in (False, True):
        model = vgg16.build_vgg16(size, CLASSES, params, seed=5)
        freezing.set_trainable(model, ("block4", "block5"))
        changed.append(use_fast_gradients(model) if fast else 0)
        with tf.GradientTape() as tape:
            loss = keras.losses.sparse_categorical_crossentropy(labels, model(pixels, training=True))
        gradients.append(tape.gradient(loss, [variable.value for variable in model.trainable_variables]))
    assert changed == [0, 6]
    for plain, fast_one in zip(*gradients, strict=True):
        assert norm_apart(plain, fast_one) < 0.03
        plain, fast_one = np.asarray(plain, np.float64).ravel(), np.asarray(fast_one, np.float64).ravel()
        assert np.dot(plain, fast_one) > 0.999 * np.linalg.norm(plain) * np.linalg.norm(fast_one)


def test_convolutions_in_float32_equal_bfloat16_up_to_rounding(
    tiny: TrainParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Layer by layer: through the whole network, ReLU by ReLU, roundings grow.
    params = tiny.model_copy(update={"precision": "mixed_bfloat16"})
    found = []
    for slow in (False, True):
        set_processor(monkeypatch, slow)
        found.append([convolve(layer) for layer in vgg16.base_layers(vgg16.build_vgg16(SIZE, CLASSES, params, 5))])
    for plain, in_float32 in zip(*found, strict=True):
        assert all(one.dtype == other.dtype for one, other in zip(plain, in_float32, strict=True))
        assert all(norm_apart(one, other) < 0.005 for one, other in zip(plain, in_float32, strict=True))


def convolve(layer: keras.Layer) -> list[tf.Tensor]:
    """Return a layer's output for random features, and the gradients of features and kernel for a random upstream."""
    draw = tf.random.Generator.from_seed(0)
    features = tf.cast(draw.normal((2, *layer.input.shape[1:])), tf.bfloat16)
    upstream = tf.cast(draw.normal((2, *layer.output.shape[1:])), tf.bfloat16)
    layer.activation = keras.activations.linear
    kernel = layer.kernel.value
    with tf.GradientTape() as tape:
        tape.watch(features)
        outputs = layer(features)
    return [outputs, *tape.gradient(outputs, [features, kernel], upstream)]


def test_a_processor_that_is_slow_in_bfloat16_has_no_fast_gradients(
    tiny: TrainParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_processor(monkeypatch, slow=True)
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny.model_copy(update={"precision": "mixed_bfloat16"}), seed=5)
    # One function for all layers, in place of each layer's own method.
    assert len({layer.convolution_op for layer in vgg16.base_layers(model)}) == 1
    assert use_fast_gradients(model) == 0


@pytest.mark.parametrize("slow", [False, True])
def test_faster_convolutions_change_neither_float32_nor_the_saved_file(
    tiny: TrainParams, tmp_path: Path, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_processor(monkeypatch, slow)
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny, seed=5)
    assert use_fast_gradients(model) == 0
    assert len({layer.convolution_op for layer in vgg16.base_layers(model)}) == 13  # each layer's own method
    model = vgg16.build_vgg16(SIZE, CLASSES, tiny.model_copy(update={"precision": "mixed_bfloat16"}), seed=5)
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    before = model.predict_on_batch(pixels)
    use_fast_gradients(model)
    model.save(tmp_path / "model.keras")
    assert (model.predict_on_batch(pixels) == before).all()
    assert (vgg16.load_network(tmp_path / "model.keras").predict_on_batch(pixels) == before).all()
    theirs = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_allclose(theirs.predict_on_batch(pixels), before, rtol=0.02 if slow else 0)
