"""Which question a model helps to answer: the talk's, or one that this study adds."""

from typing import Any

from medtransfer.core.params import BLOCKS, Configuration
from medtransfer.core.recipe import Augmentation

# The first has the talk's models and the head-only network; the others differ from them only in what they name.
TALK, RECIPES, SIZES, LATTICE, WEIGHTS = "talk", "recipes", "sizes", "blocks", "weights"
# With a named recipe, these, like the learning rate, only adapt it to the network's initial weights.
FITTED = ("epochs", "patience")
# The blocks that the talk's networks train, by the weights that they begin from.
TALK_BLOCKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "random": (BLOCKS,),
    "imagenet": (BLOCKS, ("block5",), ("block1",), ("block1", "block5"), ()),
    "ham10000/imagenet_all": (BLOCKS,),
}


def configuration_of(record: dict[str, Any]) -> Configuration:
    """Return the freezing configuration of a network, out of its run.json."""
    return Configuration.model_validate(record["hyperparameters"]["configuration"])


def overrides(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a network's configuration has instead of the common recipe, apart from the learning rate.

    The recipe in run.json is the one that was used, so it cannot tell.
    """
    given = configuration_of(record).model_dump(exclude_none=True)
    return {name: value for name, value in given.items() if name not in ("weights", "trainable", "learning_rate")}


def _recipe(record: dict[str, Any]) -> dict[str, Any]:
    """Return `overrides`, without FITTED where the configuration names a recipe."""
    given = overrides(record)
    return {name: value for name, value in given.items() if name not in FITTED or "recipe" not in given}


def family(record: dict[str, Any]) -> str:
    """Return the question that a model was added for: TALK, RECIPES, SIZES, LATTICE or WEIGHTS."""
    if record["kind"] != "network":
        return TALK
    changed = overrides(record)
    if changed:
        return SIZES if set(changed) == {"fraction"} else RECIPES
    found = configuration_of(record)
    if found.blocks in TALK_BLOCKS.get(found.weights, ()):
        return TALK
    return LATTICE if found.weights == "imagenet" else WEIGHTS


def family_of_pair(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the question that comparing two models of a data set answers; None if they differ in more than that."""
    families = {family(one), family(other)}
    if families == {TALK}:
        return TALK
    if "baseline" in (one["kind"], other["kind"]):
        return None
    ours, theirs = configuration_of(one), configuration_of(other)
    same_part = ours.weights == theirs.weights or ours.blocks == theirs.blocks
    if families == {RECIPES} and _recipe(one) == _recipe(other) and same_part:
        return RECIPES
    if changed_recipe(one, other) or changed_recipe(other, one):
        return RECIPES
    if families == {SIZES} and ours.fraction == theirs.fraction and ours.blocks == theirs.blocks == BLOCKS:
        return SIZES if {ours.weights, theirs.weights} == {"random", "imagenet"} else None
    if families & {RECIPES, SIZES}:
        return None
    if ours.weights == theirs.weights:
        return LATTICE
    return WEIGHTS if ours.blocks == theirs.blocks else None


def changed_recipe(record: dict[str, Any], base: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings that a network's configuration adds to its base's; None if they differ in anything else."""
    ours, theirs = configuration_of(record), configuration_of(base)
    mine, its = _recipe(record), _recipe(base)
    added = {name: value for name, value in mine.items() if name not in its}
    same = (ours.weights, ours.blocks) == (theirs.weights, theirs.blocks)
    if not same or not added or set(added) == {"fraction"} or mine != {**its, **added}:
        return None
    return added


def in_words(settings: dict[str, Any]) -> str:
    """Return settings as text, such as `scaling: caffe`."""
    return "; ".join(f"{name}: {_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{name} {part}" for name, part in value.items() if part != getattr(Augmentation(), name))
    return str(value or "off")
