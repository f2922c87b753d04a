"""What several configurations answer together: how many blocks to train, how many images, which recipe."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from medtransfer.analysis.differences import Comparison, find_pair
from medtransfer.analysis.families import changed_recipe, configuration_of, in_words, overrides
from medtransfer.analysis.lattice import imagenet_networks
from medtransfer.analysis.runs import Run, by_model
from medtransfer.core.params import BLOCKS
from medtransfer.core.run_record import recipe_of
from medtransfer.metrics.scores import MACRO, MICRO

SCORES = ["f1", "low", "high", "interval", "seeds"]
CHANGES = ["dataset", "model", "base", "change", "difference", "low", "high", "interval", "micro"]


def block_counts(runs: list[Run], table: pd.DataFrame) -> pd.DataFrame:
    """Return macro F1 against the number of blocks that train, from the first block on and from the last one on.

    Only networks from ImageNet weights with the common recipe count. The columns are dataset, model, start (`first` or
    `last`), blocks (0 to 5) and SCORES of `table`, from `f1_table`.
    """
    rows = []
    for dataset, model, trained, _ in imagenet_networks(runs):
        for start, blocks in (("first", BLOCKS[: len(trained)]), ("last", BLOCKS[len(BLOCKS) - len(trained) :])):
            if trained == blocks:
                rows.append((dataset, model, start, len(trained)))
    return _with_scores(pd.DataFrame(rows, columns=["dataset", "model", "start", "blocks"]), table)


def data_sizes(runs: list[Run], table: pd.DataFrame) -> pd.DataFrame:
    """Return macro F1 against the number of training images, for networks that train all blocks.

    The columns are dataset, model, weights (`random` or `imagenet`), fraction, images and SCORES of `table`, from
    `f1_table`.
    """
    rows = []
    for dataset, model, fits in _networks(runs):
        record = fits[0].record
        weights, blocks = configuration_of(record).weights, configuration_of(record).blocks
        if weights in ("random", "imagenet") and blocks == BLOCKS and set(overrides(record)) <= {"fraction"}:
            fraction = recipe_of(record).fraction
            rows.append((dataset, model, weights, fraction, record["training_images"]))
    columns = ["dataset", "model", "weights", "fraction", "images"]
    return _with_scores(pd.DataFrame(rows, columns=columns), table)


def chain(runs: list[Run], table: pd.DataFrame) -> pd.DataFrame:
    """Return macro F1 of networks that train all blocks, by the chain of weights that each starts from.

    The runs are those of all data sets, since a chain's source is a run of another one; only data sets with a chain are
    returned. The columns are dataset, model, start (`imagenet → ham10000`) and SCORES of `table`, from `f1_table`.
    """
    networks = {(dataset, model): fits[0].record for dataset, model, fits in _networks(runs)}
    rows = []
    for (dataset, model), record in networks.items():
        configuration = configuration_of(record)
        if configuration.blocks != BLOCKS or overrides(record):
            continue
        start = configuration.weights
        if configuration.source in networks:
            start = f"{configuration_of(networks[configuration.source]).weights} → {configuration.source[0]}"
        rows.append((dataset, model, start))
    found = pd.DataFrame(rows, columns=["dataset", "model", "start"])
    linked = found.dataset[found.start.str.contains("→")]
    return _with_scores(found[found.dataset.isin(linked)], table)


def recipe_changes(runs: list[Run], pairs: Iterable[Comparison]) -> pd.DataFrame:
    """Return every network beside its base: the network whose configuration is the same but for fewer changes.

    The columns are CHANGES: change (`scaling: caffe`), difference of model less base in macro F1 with its 95% interval
    and what that covers, micro (their difference in micro F1).
    """
    rows, networks = [], _networks(runs)
    for dataset, model, fits in networks:
        bases = [
            (len(overrides(base_fits[0].record)), base, base_fits, change)
            for other, base, base_fits in networks
            if dataset == other and (change := changed_recipe(fits[0].record, base_fits[0].record))
        ]
        if not bases:
            continue
        _, base, base_fits, change = max(bases, key=lambda found: found[0])
        if pair := find_pair(pairs, dataset, model, base):
            micro = np.mean([run.scores[MICRO] for run in fits]) - np.mean([run.scores[MICRO] for run in base_fits])
            rows.append((dataset, model, base, in_words(change), pair.difference, *pair.ends, pair.interval, micro))
    return pd.DataFrame(rows, columns=CHANGES)


def _networks(runs: list[Run]) -> list[tuple[str, str, list[Run]]]:
    return [entry for entry in by_model(runs) if entry[2][0].is_network]


def _with_scores(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    macro = table[table["class"] == MACRO][["dataset", "model", *SCORES]]
    return rows.merge(macro, on=["dataset", "model"], how="left")
