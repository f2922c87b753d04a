"""Which layers train: a freezing configuration lists the trainable blocks; all others are frozen."""

import keras

from medtransfer.core.params import BLOCKS

HEAD = "head"


def set_trainable(model: keras.Model, blocks: tuple[str, ...]) -> list[str]:
    """Freeze everything except the given blocks and the head; return the names of the trainable layers.

    It is a ValueError if the network lacks one of the blocks.
    """
    for layer in weighted_layers(model):
        layer.trainable = block_of(layer.name) in (*blocks, HEAD)
    trained = [layer.name for layer in weighted_layers(model) if layer.trainable]
    covered = {block_of(name) for name in trained}
    if covered != {*blocks, HEAD}:
        raise ValueError(f"the configuration names {sorted(blocks)} but covers {sorted(covered)}")
    return trained


def block_of(layer: str) -> str:
    """Return the block of a layer by its name, block1 … block5 or head; ValueError if it has none."""
    part = layer.partition("_")[0]
    if part not in (*BLOCKS, HEAD):
        raise ValueError(f"layer {layer!r} belongs to no block")
    return part


def weighted_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the convolution and dense layers in network order."""
    return [layer for layer in model.layers if layer.weights]


def count_weights(model: keras.Model) -> dict[str, int]:
    """Return the number of trainable and of frozen weights."""
    counts = {"trainable": 0, "frozen": 0}
    for layer in weighted_layers(model):
        counts["trainable" if layer.trainable else "frozen"] += int(layer.count_params())
    return counts
