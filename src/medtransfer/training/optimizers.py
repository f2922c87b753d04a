"""The optimizer of a recipe: its learning rate over time and by block, weight decay and a moving average."""

from typing import Any

import keras

from medtransfer.core.params import BLOCKS
from medtransfer.core.recipe import TrainParams
from medtransfer.models.freezing import HEAD, block_of

KINDS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
}
PLATEAU_FACTOR = 0.2


def build_optimizer(params: TrainParams, steps: int) -> keras.optimizers.Optimizer:
    """Return the optimizer of a recipe; SGD has a momentum of 0.9.

    Parameters
    ----------
    steps : int
        Per epoch.
    """
    settings: dict[str, Any] = {"learning_rate": learning_rate(params, steps)}
    if params.optimizer == "sgd":
        settings["momentum"] = 0.9
    if params.optimizer == "adamw":
        settings["weight_decay"] = params.weight_decay
    if params.average:
        settings |= {"use_ema": True, "ema_momentum": params.average}
    by_block = params.block_rate < 1 or params.head_first
    kind = KINDS["adam" if by_block and params.optimizer == "adamw" else params.optimizer]
    if issubclass(kind, keras.optimizers.Adam) and keras.backend.backend() == "tensorflow":
        kind = _in_one_pass(kind)
    if params.average:
        kind = _averaging(kind)
    if not by_block:
        return kind(**settings)
    decay = settings.pop("weight_decay", 0.0)
    return _by_block(kind)(params.block_rate, params.head_first * steps, decay, **settings)


def learning_rate(params: TrainParams, steps: int) -> Any:
    """Return the learning rate, or its schedule over training steps."""
    warmup, rate = params.warmup * steps, params.learning_rate
    if params.schedule == "cosine":
        start = {"initial_learning_rate": 0.0, "warmup_target": rate, "warmup_steps": warmup}
        settings = start if warmup else {"initial_learning_rate": rate}
        return keras.optimizers.schedules.CosineDecay(decay_steps=params.epochs * steps - warmup, **settings)
    return rate


def rate_of(block: str, block_rate: float) -> float:
    """Return a block's share of the learning rate (Howard and Ruder, ULMFiT, ACL 2018, section 3.2)."""
    return float(block_rate ** ([*BLOCKS, HEAD][::-1].index(block)))


def _in_one_pass(kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Return Adam or AdamW with TensorFlow's own update of a variable, which reads and writes memory only once.

    Keras's update is a chain of operations, each over the whole variable. The values differ only by rounding.
    """

    class InOnePass(kind):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            import tensorflow as tf

            index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, tf.float32)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=tf.pow(self.beta_1, step),
                beta2_power=tf.pow(self.beta_2, step),
                lr=tf.cast(learning_rate, tf.float32),
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )

    return InOnePass


def _averaging(kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Return a kind of optimizer whose moving average is shorter at first: its momentum is at most (1 + t) / (10 + t).

    Otherwise, the average of a fit with few steps is mostly that of the initial weights.
    """

    class Averaging(kind):
        @property
        def ema_momentum(self) -> Any:
            steps = keras.ops.cast(self.iterations, "float32")
            return keras.ops.minimum(self.largest_momentum, (1 + steps) / (10 + steps))

        @ema_momentum.setter
        def ema_momentum(self, value: float) -> None:
            self.largest_momentum = value

    return Averaging


def _by_block(kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Return a kind of optimizer with a rate and a decay per block, at first 0 for all but the head."""

    class ByBlock(kind):
        def __init__(self, block_rate: float, head_only: int, decay: float, **settings: Any):
            super().__init__(**settings)
            self.block_rate, self.head_only, self.decay = block_rate, head_only, decay

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            # On TensorFlow `variable` is not Keras's, and has no path.
            path = self._trainable_variables[self._get_variable_index(variable)].path
            block = block_of(path.split("/")[-2])
            rate = learning_rate * rate_of(block, self.block_rate)
            if block != HEAD:
                rate = keras.ops.where(self.iterations < self.head_only, 0.0, rate)
            if self.decay:
                variable.assign(variable - variable * rate * self.decay)
            super().update_step(gradient, variable, rate)

    return ByBlock
