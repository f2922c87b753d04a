"""params.yaml as typed, validated values."""

import logging
import os.path
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)  # fmt: skip
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from medtransfer.core.errors import CONFLICT, UserError, merge_conflict, unknown
from medtransfer.core.provenance import restoring
from medtransfer.core.recipe import (
    RECIPES,
    UNKNOWN_KEY,
    Overrides,
    PositiveInt,
    Rate,
    Section,
    TrainParams,
)

log = logging.getLogger(__name__)

BLOCKS = ("block1", "block2", "block3", "block4", "block5")
TREES = ("decision_tree", "random_forest")
WEIGHTS_VARIABLE = "MEDTRANSFER_WEIGHTS"  # takes precedence over `weights.file`

# YAML writes a key of more than 128 characters in another form, and a name is part of names of folders.
NAME_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
WEIGHTS_PATTERN = r"^(random|imagenet|imagenet_moments|[a-z][a-z0-9_]*/[a-z][a-z0-9_]*)$"
# A label also names a column and a metric in MLflow, whose name may have 250 characters, prefix included.
LABEL_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_. -]{0,98}[A-Za-z0-9_.-])?$"
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
LINE_PATTERN = r"^[^\n]+$"
Line = Annotated[str, Field(pattern=LINE_PATTERN)]
# The patterns in words, for messages.
IN_WORDS = {
    NAME_PATTERN: "lowercase letters, digits and '_', at most 64, with a letter first",
    LABEL_PATTERN: "letters, digits, spaces, '_', '.' and '-', at most 100, a letter or digit first, no space last",
    LINE_PATTERN: "one line that is not empty",
    WEIGHTS_PATTERN: "random, imagenet, imagenet_moments or a finished run, <data set>/<configuration>",
}
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# One rate, or one per data set. The tags keep a mistake in one form from being reported as the other.
RATE, RATES = "<rate>", "<rates>"
Rates = Annotated[
    Annotated[Rate, Tag(RATE)] | Annotated[dict[Name, Rate], Tag(RATES)],
    Discriminator(lambda value: RATES if isinstance(value, dict) else RATE),
]


def _each_once(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"expected each value once, but {value} occurs {values.count(value)} times")
    return values


EachOnce = AfterValidator(_each_once)


class Split(Section):
    """How samples are divided; the rest, neither validation nor test, is for training.

    `by: given` keeps the data set's own parts, and has no `test`. With `validation`, that fraction of its training
    images is drawn by group, and its own validation images are left out.
    """

    by: Literal["image", "group", "given"]
    validation: Fraction | None = None
    test: Fraction | None = None
    seed: Seed
    leakage: Literal["keep", "remove", "match"] = "keep"

    @model_validator(mode="after")
    def _leave_training_and_whole_folds(self) -> "Split":
        if self.by == "given":
            if self.test is not None:
                raise ValueError("test: with by: given, the data set has its own test images; remove this key")
            if self.validation:
                self._check_fold("validation", self.validation)
            return self
        if self.validation is None or self.test is None:
            raise ValueError(f"{'test' if self.test is None else 'validation'}: missing; add it")
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation + test is {self.validation + self.test:g}; expected less than 1, to leave images for "
                "training"
            )
        if self.by == "group" and self.leakage != "keep":
            raise ValueError(f"leakage: {self.leakage} is for by: image; a split by group has no leakage")
        if self.by == "group":
            self._check_fold("test", self.test)
            self._check_fold("validation", self.validation / (1 - self.test))
        return self

    def _check_fold(self, name: str, part: float) -> None:
        if abs(1 / part - round(1 / part)) > 1e-6:
            raise ValueError(
                f"with by: {self.by}, {name} must be one of k equal folds of the images left to divide, but it is "
                f"{part:.4g} of them; 0.2 and 0.2 work"
            )


class CatalogueEntry(Section):
    """The description of a custom data set, written by `medtransfer data add`.

    `classes`: the labels in the order of every table, a list because DVC does not see the order of a mapping.
    `meanings`: what a label stands for, if its name does not say so. `group`: what several images can share.
    `scope`: for which images the networks are, such as `chest X-rays only`; shown where images are classified.
    """

    title: Line
    classes: Annotated[list[Label], Field(min_length=2), EachOnce]
    meanings: dict[Label, Line] = Field(default_factory=dict)
    group: Line
    licence: Line
    citation: Line
    scope: str = ""

    @field_validator("meanings")
    @classmethod
    def _explain_known_classes(cls, meanings: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for label in meanings:
            if label not in info.data.get("classes", meanings):
                raise ValueError(unknown("meanings", label, info.data["classes"]))
        return meanings


class DatasetParams(Section):
    """How one data set is prepared; `image_size` is the side of the square image in pixels.

    `bits` are those that files with 16 bits use; by default, those of the largest value in the data set.
    """

    image_size: Annotated[int, Field(ge=32, le=1024)]
    resize_filter: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    split: Split
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    catalogue: CatalogueEntry | None = None


class StudyParams(Section):
    """The freezing configurations that one data set is studied with."""

    train: Annotated[list[Name], EachOnce]
    transfer: Annotated[list[Name], EachOnce] = Field(default_factory=list)

    @property
    def networks(self) -> list[str]:
        """All of them, those to transfer from last."""
        return [*self.train, *self.transfer]


class DecisionTreeParams(Section):
    """Settings of scikit-learn's DecisionTreeClassifier."""

    criterion: Literal["gini", "entropy"]
    max_depth: PositiveInt | None
    min_samples_leaf: PositiveInt


class RandomForestParams(DecisionTreeParams):
    """Settings of scikit-learn's RandomForestClassifier."""

    n_estimators: PositiveInt
    max_features: Literal["sqrt", "log2"] | None


class TreesParams(Section):
    """Settings of the two baselines."""

    decision_tree: DecisionTreeParams
    random_forest: RandomForestParams


class WeightsParams(Section):
    """Where the ImageNet weights come from; `file` takes precedence over every other source."""

    file: Annotated[str, AfterValidator(os.path.expanduser)] | None


class CacheParams(Section):
    """The size limit of the feature cache in units of 10^9 bytes; 0 turns it off."""

    max_gb: Annotated[float, Field(ge=0)]


class Configuration(Overrides):
    """A freezing configuration: the initial weights of a network and the blocks that it trains.

    `weights` is `random`, `imagenet`, `imagenet_moments` (random, with ImageNet's mean and deviation per tensor) or a
    finished run, `<data set>/<configuration>`.
    `trainable` is `all`, `head` or a list of blocks; the classification head always trains.
    The other keys replace those of `train`; `recipe` replaces all that it names. The learning rate may be one per data
    set; `medtransfer tune` finds it.
    """

    weights: Annotated[str, Field(pattern=WEIGHTS_PATTERN)]
    trainable: str | list[str]
    learning_rate: Rates | None = None

    @field_validator("trainable", mode="before")
    @classmethod
    def _name_known_blocks(cls, value: Any) -> Any:
        if value in ("all", "head"):
            return value
        different = isinstance(value, list) and value and len({*map(str, value)}) == len(value)
        if different and all(block in BLOCKS for block in value):
            return value
        raise ValueError(f"must be 'all', 'head' or a list of different blocks out of {', '.join(BLOCKS)}")

    def settings(self, train: TrainParams, dataset: str) -> TrainParams:
        """Return the training recipe of this configuration on a data set."""
        own = {name: getattr(self, name) for name in self.model_fields_set if name in TrainParams.model_fields}
        found = {**dict(train), **(RECIPES[self.recipe] if self.recipe else {})}
        found |= {name: value for name, value in own.items() if value is not None}
        if isinstance(self.learning_rate, dict):
            common = RECIPES[self.recipe]["learning_rate"] if self.recipe else train.learning_rate
            if dataset not in ("", *self.learning_rate):  # "" is no data set: the recipe is only checked
                _warn_once(
                    f"learning_rate: {self.learning_rate} has no rate for {dataset}, so {common:g} is used; "
                    f"`medtransfer tune {dataset}` finds one"
                )
            found["learning_rate"] = self.learning_rate.get(dataset, common)
        return TrainParams(**found).on(dataset)

    def replaces(self, key: str, dataset: str) -> bool:
        """Return whether a network on this data set has another source for a setting than `train`."""
        value = getattr(self, key, None)
        if isinstance(value, dict) and key == "learning_rate":
            value = value.get(dataset)
        return value is not None or (self.recipe is not None and key in RECIPES[self.recipe])

    @property
    def source(self) -> tuple[str, str] | None:
        """The finished run that training starts from, as (data set, configuration), or None."""
        dataset, _, configuration = self.weights.partition("/")
        return (dataset, configuration) if configuration else None

    @property
    def blocks(self) -> tuple[str, ...]:
        """The trainable blocks of the convolutional base, in the order of the network."""
        if self.trainable == "all":
            return BLOCKS
        if self.trainable == "head":
            return ()
        return tuple(block for block in BLOCKS if block in self.trainable)


class Params(Section):
    """The whole of params.yaml."""

    seeds: Annotated[list[Seed], Field(min_length=1), EachOnce]
    datasets: dict[Name, DatasetParams]
    baselines: Annotated[list[Literal["decision_tree", "random_forest"]], EachOnce]
    study: dict[Name, StudyParams]
    trees: TreesParams
    train: TrainParams
    weights: WeightsParams
    cache: CacheParams
    configurations: dict[Name, Configuration]

    @model_validator(mode="after")
    def _refer_to_what_exists(self) -> "Params":
        for name, configuration in self.configurations.items():
            if name in TREES:
                raise ValueError(f"configurations.{name}: this name belongs to a baseline; choose another")
            rates = configuration.learning_rate
            for dataset in rates if isinstance(rates, dict) else ():
                if dataset not in self.datasets:
                    raise ValueError(unknown(f"configurations.{name}.learning_rate", dataset, self.datasets))
            try:
                configuration.settings(self.train, "")
            except ValidationError as error:
                raise ValueError(f"configurations.{name}: {_message(error.errors()[0])}") from None
        for dataset, study in self.study.items():
            if dataset not in self.datasets:
                raise ValueError(unknown("study", dataset, self.datasets))
            for name in study.train:
                self._check_configuration(dataset, "train", name)
            for name in study.transfer:
                self._check_configuration(dataset, "transfer", name)
        return self

    def _check_configuration(self, dataset: str, kind: Literal["train", "transfer"], name: str) -> None:
        key = f"study.{dataset}.{kind}"
        if name not in self.configurations:
            raise ValueError(unknown(key, name, self.configurations))
        source = self.configurations[name].source
        if kind == "transfer" and not source:
            raise ValueError(f"{key}: '{name}' must start from a finished run; list it under study.{dataset}.train")
        if kind == "train" and source:
            raise ValueError(
                f"{key}: '{name}' must start from random or imagenet weights; list it under study.{dataset}.transfer"
            )
        if source and source[1] in self.configurations and self.configurations[source[1]].source:
            raise ValueError(
                f"configurations.{name}.weights: '{'/'.join(source)}' starts from a finished run itself; "
                "expected one that starts from random or imagenet weights"
            )
        if source and (source[0] not in self.study or source[1] not in self.study[source[0]].train):
            raise ValueError(
                f"configurations.{name}.weights: '{'/'.join(source)}' is not trained by this study; "
                f"add it to study.{source[0]}.train"
            )


def read_params(path: Path) -> Params:
    """Read and validate params.yaml."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path}: not found in {Path.cwd()}; run medtransfer in the project's folder, or {restoring(path)}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    return parse_params(text, path)


def parse_yaml(text: str, path: Path) -> Any:
    """Return the values in a YAML text; `path` is for messages."""
    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # A strange date or key raises an error of Python, which ruamel does not catch.
        if CONFLICT in text:
            raise merge_conflict(path, "run again") from None
        raise UserError(f"{path}: cannot be read as YAML: {_yaml_reason(error)}") from None


def parse_params(text: str, path: Path) -> Params:
    """Validate the text of params.yaml; `path` is for messages."""
    raw = parse_yaml(text, path)
    if raw is None:
        raise UserError(f"{path}: empty; {restoring(path)}")
    params = validate_params(raw, path)
    for key in unused_settings(params):
        _warn_once(
            f"{path}: train.{key}: no network uses it, since each has its own; change configurations.<name>.{key}"
        )
    return params


def validate_params(raw: Any, where: object) -> Params:
    """Return the values of params.yaml as Params; the UserError for a wrong one begins with `where`."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(one_line(where, error)) from None


def value_of(values: Any, key: str) -> Any:
    """Return the value at a dotted key of nested dictionaries, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def unused_settings(params: Params) -> list[str]:
    """Return the keys of `train` that each studied network replaces, and that are not those of the recipe."""
    studied = [
        (dataset, params.configurations[name]) for dataset, study in params.study.items() for name in study.networks
    ]
    given, recipe = dict(params.train), RECIPES[params.train.recipe]
    changed = [key for key, value in given.items() if key in recipe and value != recipe[key]]
    return [key for key in changed if studied and all(own.replaces(key, dataset) for dataset, own in studied)]


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {' '.join(str(error.problem).split())}"
    return " ".join(str(error).split())


def one_line(path: object, error: ValidationError) -> str:
    """Return the message for the first wrong value in a file that was read as YAML."""
    # An unknown key comes first: if a section is misspelt, the right one is missing too.
    first = min(error.errors(include_url=False), key=lambda entry: entry["type"] != UNKNOWN_KEY)
    parts = [*first["loc"], *([first["ctx"]["key"]] if first["type"] == UNKNOWN_KEY else [])]
    key = ".".join(str(part) for part in parts if part not in (RATE, RATES, "[key]"))
    where = f"{path}: {key}" if key else f"{path}"
    if first["type"] == "missing":
        return f"{where}: missing; add it"
    message, found = _message(first), first["input"]
    if first["type"] == "string_pattern_mismatch":
        message = f"expected {IN_WORDS[first['ctx']['pattern']]}"
    message = message[:1].lower() + message[1:]
    if isinstance(found, Section | dict):
        return f"{where}: {message}"
    return " ".join(f"{where}: found {found!r} ({type(found).__name__}), {message}".split())


def _message(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")
