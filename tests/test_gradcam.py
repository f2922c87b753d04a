"""Where a network looked: the gradient is the slope of the score, and the most confident answers are shown."""

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medtransfer.core.recipe import TrainParams
from medtransfer.layers.gradcam import grad_cam, overlay, why_unclear
from medtransfer.models import vgg16
from medtransfer.study.finished import choose

pytestmark = pytest.mark.usefixtures("narrow")

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def test_the_map_is_that_of_the_paper(tiny: TrainParams) -> None:
    model = vgg16.build_vgg16(32, 3, tiny, seed=0)
    classes = np.array([2, 0])
    found = grad_cam(model, PIXELS, classes)
    assert found.shape == (2, 2, 2)
    assert found.max() == 1
    # The slopes again, by changing each value of the map a little; only channels that are not 0 have one.
    maps = keras.Model(model.inputs, model.get_layer("block5_conv3").output).predict_on_batch(PIXELS)
    rest = keras.Model(model.get_layer("block5_conv3").output, model.get_layer("head_dropout2").output)
    kernel = model.get_layer("head_output").get_weights()[0]
    for image, asked in enumerate(classes):
        steps = np.zeros((maps[0].size, *maps[0].shape), np.float32)
        size = 1e-3 * maps[image].max()
        steps.reshape(len(steps), -1)[np.arange(len(steps)), np.arange(len(steps))] = size
        up, down = (rest.predict_on_batch(maps[image] + sign * steps) @ kernel[:, asked] for sign in (1, -1))
        slopes = ((up - down) / (2 * size)).reshape(maps[image].shape)
        heat = np.maximum((slopes.mean(axis=(0, 1)) * maps[image]).sum(axis=-1), 0)
        assert found[image] == pytest.approx(heat / heat.max() if heat.max() else heat, abs=0.05)
    keras.backend.clear_session()


def test_a_map_of_few_positions_does_not_show_where_the_network_looked() -> None:
    assert "2 × 2 positions" in why_unclear(2, 2)
    assert why_unclear(4, 4) == ""


def test_the_heat_colours_its_own_corner_of_the_image() -> None:
    heat = np.array([[0, 1], [0, 0]], np.float32)
    drawn = overlay(Image.new("RGB", (60, 20), (200, 100, 100)), heat)
    assert drawn.size == (60, 20)
    pixels = np.asarray(drawn).astype(int)
    cold = pixels[-1, 0]
    assert cold.max() - cold.min() <= 2  # grey
    assert (pixels[[0, -1], [0, -1]] == cold).all()
    assert (pixels[0, -1] - cold).min() > 50
    assert pixels[0, -1, 0] - pixels[0, -1, 2] > 30  # inferno's yellow


def test_the_most_confident_correct_and_wrong_prediction_of_each_class_is_chosen() -> None:
    table = pd.DataFrame(
        [
            ("1", "a", 0.9, 0.1), ("2", "a", 0.6, 0.4), ("3", "a", 0.3, 0.7), ("4", "a", 0.1, 0.9),
            ("5", "b", 0.2, 0.8), ("6", "b", 0.4, 0.6),
        ],
        columns=["id", "label", "p_a", "p_b"],
    )  # fmt: skip
    chosen = choose(table, ["a", "b"])
    assert list(chosen.id) == ["1", "4", "5"]  # of b, none is wrong
    assert list(chosen.right) == [True, False, True]
    assert list(chosen.probability) == [0.9, 0.9, 0.8]
