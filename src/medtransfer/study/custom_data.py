"""data add and data remove: a custom data set → data/, params.yaml and dvc.yaml, and out of them."""

import io
import re
import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from textwrap import indent
from typing import Any

import pandas as pd
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import ComposerError
from ruamel.yaml.mergevalue import MergeValue

from medtransfer.core.dvc import PIPELINE
from medtransfer.core.errors import UserError
from medtransfer.core.files import atomic_file
from medtransfer.core.layout import DATA, PARAMS
from medtransfer.core.params import IN_WORDS, LABEL_PATTERN, NAME_PATTERN, DatasetParams, Params, Split, parse_params
from medtransfer.data.catalogue import CATALOGUE
from medtransfer.data.custom import Columns, copy_custom, find_samples
from medtransfer.data.preparation import assign_splits
from medtransfer.data.tables import same_if_alike
from medtransfer.metrics.scores import BY_NAME

TRAINING = "train-"


def check_custom_name(name: str) -> None:
    """Check that a name is one for a custom data set, which is also a folder in data/."""
    if name in CATALOGUE:
        raise UserError(
            f"{name}: the name of a built-in data set; choose another name, or `medtransfer data import {name} FILE`"
        )
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(f"{name!r}: not a name for a data set; expected {IN_WORDS[NAME_PATTERN]}")


def add_custom(
    params: Params, name: str, images: Path, labels: Path | None, columns: Columns, about: dict[str, str], only: bool
) -> int:
    """Copy a data set to data/ and add it to params.yaml and dvc.yaml; return the number of images.

    It is prepared like the first data set in params.yaml, split by group if it has groups, and studied with every
    configuration that does not start from a finished run. The two files keep their comments and order. `about` has any
    of `title`, `licence` and `citation`; the others keep their values in params.yaml. `only` removes the other data
    sets from the study.
    """
    samples, known = find_samples(images, labels, columns), params.datasets.get(name)
    grouped = bool(columns.group) or bool((samples.group != samples.id).any())
    by = _split_by(name, known, columns.group, grouped=grouped, given="split" in samples)
    entry: dict[str, Any] = {"title": name, "classes": [], "meanings": {}, "group": ""}
    entry |= {"licence": "unknown", "citation": "none"}
    if known and known.catalogue:
        entry |= known.catalogue.model_dump(exclude_unset=True)
    classes = _classes(samples, entry["classes"], labels or images)
    entry |= {"classes": classes, "meanings": {label: entry["meanings"].get(label, label) for label in classes}}
    entry |= {"group": columns.group or ("patient" if grouped else "image"), **about}
    given_parts = {"test", *samples.split} - {"train"} if by == "given" else set()  # the data have these parts
    files = _plan(params, name, entry, by=by, only=only, without=given_parts)
    split = parse_params(files[PARAMS], PARAMS).datasets[name].split
    assign_splits(samples, split, name)  # refuses what is too small before anything is changed
    copy_custom(name, samples, DATA, f"folder {images.resolve().name}")
    _write(files)
    print(", ".join(f"{label} {count}" for label, count in samples.label.value_counts()[classes].items()))
    return len(samples)


def _split_by(name: str, known: DatasetParams | None, group: str | None, *, grouped: bool, given: bool) -> str:
    """Return `split.by`: that of params.yaml, which the data must allow, or the strictest that they allow."""
    possible = [by for by, fits in (("given", given), ("group", grouped), ("image", given or not grouped)) if fits]
    by = known.split.by if known else possible[0]
    if by not in possible:
        option = "--split-column" if by == "given" else "--group"
        grouping = f"--group {group}" if group else "the patient id in the DICOM files"
        found = f"{grouping} would split by group" if by == "image" else f"{option} is missing"
        raise UserError(
            f"{PARAMS}: datasets.{name}.split.by: is {by}, but {found}; change the option, or write "
            f"by: {'group' if grouped else 'image'} there"
        )
    return by


def remove_custom(params: Params, name: str) -> None:
    """Remove a custom data set from data/, params.yaml and dvc.yaml."""
    if name not in params.datasets or not params.datasets[name].catalogue:
        raise UserError(
            f"{PARAMS}: datasets: no custom data set {name!r}; to leave out a built-in one, remove it from `study`"
        )
    yaml, text = _round_trip(), PARAMS.read_text(encoding="utf-8")
    for section in ("datasets", "study"):
        text = _remove(text, section, name)
    pipeline = _read_pipeline(yaml)
    _remove_training(pipeline["stages"], name)
    files = {PARAMS: text, PIPELINE: _dump(yaml, pipeline)}
    parse_params(text, PARAMS)  # refuses if a configuration needs the data set
    shutil.rmtree(DATA / name, ignore_errors=True)
    _write(files)


def _write(files: dict[Path, str]) -> None:
    with ExitStack() as stack:  # both are written before either is replaced
        for path, text in files.items():
            stack.enter_context(atomic_file(path)).write_text(text, encoding="utf-8")


def _remove_training(stages: Any, name: str) -> None:
    stage, training = f"{TRAINING}{name}", [key for key in stages if key.startswith(TRAINING)]
    if stage not in training:
        return
    if training == [stage]:
        raise UserError(f"{PIPELINE}: {stage} is the only training stage; add another data set first")
    if stage == training[0]:  # the others share all but its matrix
        first, matrix = stages[stage], stages.pop(training[1])["matrix"]
        stages.insert(list(stages).index(stage), training[1], first)
        first["matrix"] = matrix
    for key in {stage, *_stages_of(stages, name)}:
        del stages[key]
    for other in stages.values():
        listed = (other.get("matrix") or {}).get("dataset", [])
        if isinstance(listed, list) and name in listed:  # not the text ${study}
            listed.remove(name)


def _stages_of(stages: Any, name: str) -> list[str]:
    """Return the stages that fit what params.yaml lists for a data set, whether they train or transfer."""
    return [key for key, stage in stages.items() if f"{{study.{name}." in str(stage.get("matrix"))]


def _classes(samples: pd.DataFrame, known: Sequence[str], where: Path) -> list[str]:
    """Return the classes, first those in params.yaml in their order there."""
    classes, known_as = sorted(samples.label.unique()), dict[str, str]()
    for label, plain in zip(classes, same_if_alike(pd.Series(classes)).str.replace(" ", "_"), strict=True):
        other = known_as.setdefault(plain, label)
        if other != label:
            raise UserError(f"{where}: labels {other!r} and {label!r} may be the same; use one spelling")
        if not re.fullmatch(LABEL_PATTERN, label):
            raise UserError(f"{where}: label {label!r}: expected {IN_WORDS[LABEL_PATTERN]}; rename it")
        if label in (*BY_NAME, "seeds", "intervals", "warning"):
            raise UserError(f"{where}: label {label!r}: every table uses this name for something else; rename it")
    if len(classes) < 2:
        inner = where / classes[0]
        hint = f"; if the folders in it are the classes, use --images {inner}" if inner.is_dir() else ""
        raise UserError(f"{where}: {classes[0]} is the only label; a study needs two or more{hint}")
    return sorted(classes, key=[*known, *classes].index)


def _plan(
    params: Params, name: str, entry: dict[str, Any], by: str, only: bool, without: Collection[str]
) -> dict[Path, str]:
    """Return the new text of params.yaml and dvc.yaml; a new split is the first one's, without some keys."""
    yaml = _round_trip()
    text, pipeline = PARAMS.read_text(encoding="utf-8"), _read_pipeline(yaml)
    values = yaml.load(text)
    first, known = next(iter(values["datasets"].values())), values["datasets"].get(name)
    if known:
        known.setdefault("catalogue", CommentedMap()).update(entry)
        text = _dump(yaml, values)
    else:
        parts = {"by": by, "validation": 0.2, "test": 0.2, **first["split"]}
        kept = [key for key in ("validation", "test", "seed") if key not in without]
        split = CommentedMap({"by": by, **{key: parts[key] for key in kept}})
        try:
            Split.model_validate(split)
        except ValidationError:  # the parts of a split by image need not be folds
            split.update({key: 0.2 for key in kept if key != "seed"})
        split.fa.set_flow_style()
        like_first = {key: first[key] for key in ("image_size", "resize_filter")}
        text = _append(text, "datasets", name, {**like_first, "split": split, "catalogue": entry})
    if name not in values["study"]:
        plain = [key for key, configuration in params.configurations.items() if configuration.source is None]
        text = _append(text, "study", name, {"train": plain})
    for other in [key for key in reversed(values["study"]) if only and key != name]:  # an anchor after its aliases
        text = _remove(text, "study", other)
    _add_training(pipeline["stages"], name, only)
    return {PARAMS: text, PIPELINE: _dump(yaml, pipeline)}


# As text: to ruamel, the comment after an entry, which describes the next section, is a part of the entry.
def _append(text: str, section: str, name: str, entry: dict[str, Any]) -> str:
    """Return params.yaml with an entry at the end of a section."""
    yaml = _round_trip()
    values = yaml.load(text)
    if values[section].fa.flow_style():
        values[section].fa.set_block_style()
        text = _dump(yaml, values)
        values = yaml.load(text)
    last = list(values[section])[-1]
    before, found, after = _divide(text, values[section], last)
    return before + found + indent(_dump(yaml, {name: entry}), " " * values[section].lc.key(last)[1]) + after


def _remove(text: str, section: str, name: str) -> str:
    """Return params.yaml without an entry of a section, if it has it."""
    values = _round_trip().load(text)[section]
    if name not in values:
        return text
    before, _, after = _divide(text, values, name)
    try:
        _round_trip().load(before + after)
    except ComposerError:
        raise UserError(
            f"{PARAMS}: {section}.{name}: has an anchor (&) that another entry uses (*); write the values in both, "
            "then run again"
        ) from None
    return before + after


def _divide(text: str, values: CommentedMap, name: str) -> tuple[str, str, str]:
    """Return the text before an entry, the entry, and what comes after it."""
    line, column = values.lc.key(name)
    lines = f"{text.rstrip()}\n".splitlines(keepends=True)
    # Blank lines and comments belong to the entry if one of its lines follows.
    between = r"(?:[ \t]*(?:#.*)?\n)*"
    _, entry, after = re.split(rf"\A(.*\n(?:{between}{' ' * column} .*\n)*)", "".join(lines[line:]))
    return "".join(lines[:line]), entry, after


def _read_pipeline(yaml: YAML) -> Any:
    if not PIPELINE.exists():
        raise UserError(f"{PIPELINE}: not found; restore it (`git checkout {PIPELINE}`)")
    return yaml.load(PIPELINE.read_text(encoding="utf-8"))


def _dump(yaml: YAML, values: Any) -> str:
    text = io.StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _round_trip() -> YAML:
    """Return a YAML reader and writer that keeps comments, order and layout."""
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
        for key in stages.keys() - {*_stages_of(stages, name)}:
            if "configuration" in (stages[key].get("matrix") or {}):
                stages[key]["matrix"]["configuration"] = CommentedSeq()
    elif stage not in stages:
        shared = MergeValue()
        shared.append(first)
        shared.merge_pos = 0
        added = CommentedMap(matrix=matrix)
        added.add_yaml_merge(shared)
        stages.insert(place + 1, stage, added)
