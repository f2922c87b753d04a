"""data add: a data set of the user's own → data/, params.yaml and dvc.yaml."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.mergevalue import MergeValue

from medtransfer.core.dvc import PIPELINE
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file
from medtransfer.core.layout import DATA, PARAMS
from medtransfer.core.params import IN_WORDS, LABEL_PATTERN, NAME_PATTERN, Params, parse_params
from medtransfer.data.catalogue import CATALOGUE
from medtransfer.data.custom import Columns, copy_own, find_samples
from medtransfer.data.preparation import assign_splits
from medtransfer.metrics.scores import BY_NAME

TRAINING = "train-"
ACCURACY = "reports/plots/training_accuracy/{}-{}.csv"
COMPARED = ("cnn_random", "imagenet_all")


@dataclass(frozen=True)
class About:
    """What the user says of a data set beside its images and labels; None: what params.yaml says stays."""

    title: str | None = None
    licence: str | None = None
    citation: str | None = None


def add_own(
    params: Params, name: str, images: Path, labels: Path | None, columns: Columns, about: About, only: bool
) -> int:
    """Copy a data set to data/ and write it into params.yaml and dvc.yaml; return the number of images.

    It is prepared as the first data set there, divided by group where it has groups, and studied with the
    configurations that begin from no finished run. Comments and order of the two files are kept.

    Parameters
    ----------
    only : bool
        Take the other data sets out of the study.

    Raises
    ------
    UserError
        The name is taken or none, the images and labels do not fit, there are no two classes, or one is too small to
        be divided. Nothing is changed.
    """
    if name in CATALOGUE:
        raise UserError(f"{name}: the study's own data set; choose another name, or `medtransfer data import {name}`")
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(f"{name!r}: no name for a data set; expected {IN_WORDS[NAME_PATTERN]}")
    known = params.datasets.get(name)
    if known and known.split.by == "group" and not columns.group:
        raise UserError(
            f"{PARAMS}: datasets.{name}.split.by: is group, and --group is missing; give it, or write by: image there"
        )
    if known and known.split.by == "image" and columns.group:
        raise UserError(
            f"{PARAMS}: datasets.{name}.split.by: is image, and --group {columns.group} asks to divide by it; write "
            "by: group there, or leave --group out"
        )
    samples = find_samples(images, labels, columns)
    catalogue = known.catalogue if known else None
    entry = {
        "title": about.title or (catalogue.title if catalogue else name),
        "classes": _meanings(samples, catalogue.classes if catalogue else {}, labels or images),
        "group": columns.group or "image",
        "licence": about.licence or (catalogue.licence if catalogue else "unknown"),
        "citation": about.citation or (catalogue.citation if catalogue else "none"),
    }
    files = _plan(params, name, entry, by="group" if columns.group else "image", only=only)
    assign_splits(samples, parse_params(files[PARAMS], PARAMS).datasets[name].split, name)  # or refuse it now
    copy_own(name, samples, DATA, f"folder {images.resolve().name}")
    for path, text in files.items():
        with atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return len(samples)


def _meanings(samples: pd.DataFrame, known: Mapping[str, str], where: Path) -> dict[str, str]:
    """Return what each class stands for: as params.yaml says and in its order, and new ones for themselves."""
    classes = sorted(samples.label.unique())
    odd = [label for label in classes if not re.fullmatch(LABEL_PATTERN, label)]
    if odd:
        raise UserError(f"{where}: label {odd[0]!r}: expected letters, digits, blanks and _ . - only; rename it")
    taken = [label for label in classes if label in (*BY_NAME, "seeds", "intervals")]
    if taken:
        raise UserError(f"{where}: label {taken[0]!r}: the name of something else in every table; rename it")
    if len(classes) < 2:
        raise UserError(f"{where}: {classes[0]} is the only label; a study needs two or more")
    return {label: known.get(label, label) for label in sorted(classes, key=[*known, *classes].index)}


def _plan(params: Params, name: str, entry: dict[str, Any], by: str, only: bool) -> dict[Path, str]:
    """Return the new text of params.yaml and dvc.yaml, checked."""
    yaml = _round_trip()
    values, pipeline = (yaml.load(path.read_text(encoding="utf-8")) for path in (PARAMS, PIPELINE))
    first = next(iter(values["datasets"].values()))
    known = values["datasets"].setdefault(name, CommentedMap())
    if not known:
        split = CommentedMap({**{key: value for key, value in first["split"].items() if key != "leak"}, "by": by})
        split.fa.set_flow_style()
        known.update({"image_size": first["image_size"], "resize_filter": first["resize_filter"], "split": split})
    known.setdefault("catalogue", CommentedMap()).update(entry)
    if name not in values["study"]:
        plain = [key for key, configuration in params.configurations.items() if configuration.source is None]
        values["study"][name] = CommentedMap({"train": CommentedSeq(plain)})
    for other in [key for key in values["study"] if only and key != name]:
        del values["study"][other]
    _add_training(pipeline["stages"], name, only)
    _add_plot(pipeline, name, only)
    texts = {PARAMS: _dump(yaml, values), PIPELINE: _dump(yaml, pipeline)}
    parse_params(texts[PARAMS], PARAMS)
    return texts


def _dump(yaml: YAML, values: Any) -> str:
    text = io.StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _round_trip() -> YAML:
    """Return a reader and writer that leaves what it does not change as it is."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.preserve_quotes = True
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _add_training(stages: Any, name: str, only: bool) -> None:
    """Add the stage `train-<name>`, which shares all but its matrix with the first training stage."""
    stage, training = f"{TRAINING}{name}", [key for key in stages if key.startswith(TRAINING)]
    if not training:
        raise UserError(f"{PIPELINE}: no stage {TRAINING}<data set>; restore the file (git checkout {PIPELINE})")
    matrix = CommentedMap(dataset=CommentedSeq([name]), configuration=f"${{study.{name}.train}}", seed="${seeds}")
    matrix.fa.set_flow_style()
    first, place = stages[training[0]], list(stages).index(training[0])
    if only:
        for other in training:
            del stages[other]
        first["matrix"] = matrix
        stages.insert(place, stage, first)
        stages["transfer"]["matrix"]["fit"] = CommentedSeq()
    elif stage not in stages:
        shared = MergeValue()
        shared.append(first)
        shared.merge_pos = 0
        added = CommentedMap(matrix=matrix)
        added.add_yaml_merge(shared)
        stages.insert(place + 1, stage, added)


def _add_plot(pipeline: Any, name: str, only: bool) -> None:
    plots = pipeline.setdefault("plots", CommentedSeq())
    if only:
        plots[:] = [plot for plot in plots if not any("training accuracy" in title for title in plot)]
    title = f"{name} training accuracy"
    if not any(title in plot for plot in plots):
        files = {ACCURACY.format(name, configuration): "accuracy" for configuration in COMPARED}
        plots.append(CommentedMap({title: {"x": "epoch", "y": files}}))
