"""Shapley values of the blocks: exact with every subset, and those of an additive game with some."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from medtransfer.analysis.lattice import LOG_LOSS, block_values
from medtransfer.analysis.runs import Run
from medtransfer.core.params import BLOCKS
from medtransfer.core.predictions import as_predictions

GAINS = dict(zip(BLOCKS, (0.01, 0.02, 0.0, 0.05, 0.1), strict=True))
EVERY = [subset for size in range(6) for subset in combinations(BLOCKS, size)]


def run(blocks: tuple[str, ...], loss: float, seed: int = 0, **overrides: object) -> Run:
    """A network whose mean log-loss is `loss`; its lesions vary about it."""
    labels = np.arange(60) % 2
    noise = np.tile([0.02, 0.02, -0.02, -0.02], 15)
    right = np.exp(-(loss + noise))
    samples = pd.DataFrame({"id": map(str, range(60)), "group": [str(k // 2) for k in range(60)], "split": "test"})
    samples["label"] = np.array(["a", "b"])[labels]
    probabilities = np.where(labels[:, None] == [0, 1], right[:, None], 1 - right[:, None])
    configuration = {"weights": "imagenet", "trainable": list(blocks) or "head", **overrides}
    record = {"dataset": "d", "model": "+".join(blocks) + str(overrides), "seed": seed, "kind": "network"}
    record["hyperparameters"] = {"configuration": configuration}
    return Run(record, as_predictions(samples, probabilities, ["a", "b"]), None)


def additive(blocks: tuple[str, ...]) -> float:
    return 0.5 - sum(GAINS[block] for block in blocks)


def losses(runs: list[Run]) -> pd.DataFrame:
    found = block_values(runs)
    return found[found.metric == LOG_LOSS].set_index("blocks")


def test_values_are_the_mean_gains_over_all_orders() -> None:
    """Blocks 1 and 5 help more together, and half of that goes to each."""
    together = [run(blocks, additive(blocks) - 0.04 * ({"block1", "block5"} <= set(blocks))) for blocks in EVERY]
    found = losses(together)
    expected = {block: -gain - 0.02 * (block in ("block1", "block5")) for block, gain in GAINS.items()}
    assert found.value[list(BLOCKS)].to_dict() == pytest.approx(expected, abs=1e-6)
    pairs = found.value.drop(list(BLOCKS))
    assert len(pairs) == 10
    assert pairs["block1 + block5"] == pytest.approx(-0.04, abs=1e-6)
    assert pairs.drop("block1 + block5").abs().max() < 1e-6
    assert found.subsets.eq(32).all()


def test_some_subsets_give_an_estimate_and_no_interactions() -> None:
    found = losses([run(blocks, additive(blocks)) for blocks in EVERY[::3]])
    assert found.low.isna().all()
    assert found.interval.eq("none: 11 of 32 subsets").all()
    assert found.value.to_dict() == pytest.approx({block: -gain for block, gain in GAINS.items()}, abs=1e-6)


def test_too_few_subsets_give_nothing() -> None:
    talk = [(), BLOCKS, ("block1",), ("block5",), ("block1", "block5")]
    assert block_values([run(blocks, additive(blocks)) for blocks in talk]).empty
    assert block_values([]).empty


def test_other_recipes_and_networks_that_predict_one_class_do_not_count() -> None:
    more = [run((), 0.1, balance="sampling"), *(run(blocks, additive(blocks)) for blocks in EVERY if blocks)]
    constant = run((), 0.5)
    constant.predictions["p_a"], constant.predictions["p_b"] = 0.9, 0.1
    found = losses([*more, constant])
    assert found.subsets.eq(31).all()
    assert found.value["block5"] == pytest.approx(-0.1, abs=1e-6)


def test_intervals_grow_with_the_variance_between_seeds() -> None:
    one = [run(blocks, additive(blocks)) for blocks in EVERY]
    others = [run((), 0.5 + shift, seed) for seed, shift in ((1, 0.05), (2, -0.05))]
    single, several = losses(one), losses([*one, *others])
    assert single.interval.eq("groups").all()
    assert several.interval.eq("groups and seeds").all()
    assert (several.high - several.low > single.high - single.low + 0.01).all()
