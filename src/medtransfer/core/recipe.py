"""The training recipe of a network: its settings, and the two named recipes."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from medtransfer.core.hardware import native_precision

Scaling = Literal["tf", "caffe"]
Optimizer = Literal["adam", "adamw", "sgd", "rmsprop"]
Balance = Literal["none", "class_weights", "sampling"]
AUTO = "auto"
# `auto` is replaced by this machine's precision, so that no other module knows it.
Precision = Annotated[
    Literal["float32", "mixed_bfloat16", "auto"],
    AfterValidator(lambda asked: native_precision() if asked == AUTO else asked),
]


PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Part = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Strength = Annotated[float, Field(ge=0)]
# Images of these have no upright position: a lesion may lie any way up, a chest X-ray may not.
ANY_WAY_UP = ("ham10000",)
# Below this, Keras draws a share of exactly one half where nearly all should be 0 or 1 (findings/keras-small-beta.sh).
LEAST_MIXUP = 0.05
UNKNOWN_KEY = "unknown_key"  # the type of pydantic's error


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, values are not converted and cannot be changed."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        keys = sorted(cls.model_fields)
        for key in values if isinstance(values, dict) else ():
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                meant = f"did you mean {near[0]}? " if near else ""
                allowed = f"{meant}allowed here: {', '.join(keys)}"
                raise PydanticCustomError(UNKNOWN_KEY, "unknown key; {allowed}", {"key": str(key), "allowed": allowed})
        return values


class Augmentation(Section):
    """Random changes of each training image. Each is off by default and never part of the saved network.

    flips : `horizontal`; `any` also flips upside down and turns by right angles; `auto` is `any` for data sets whose
        images have no upright position (HAM10000), else `horizontal`
    rotation : at most this many degrees in either direction
    crop : the smallest side of a random square part, as a share of the image's side
    brightness, contrast, saturation : times 1 - x to 1 + x
    hue : a turn of at most this share of the colour circle
    cutout : the largest side of a gray square, as a share of the image's side
    mixup : the parameter of the Beta distribution from which the weights of two images and of their labels are drawn
        (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018)
    """

    flips: Literal["none", "horizontal", "any", "auto"] = "none"
    rotation: Annotated[float, Field(ge=0, le=180)] = 0
    crop: Part = 1
    brightness: Share = 0
    contrast: Share = 0
    saturation: Share = 0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0
    cutout: Share = 0
    mixup: Strength = 0


class TrainParams(Section):
    """The common training recipe of all networks. Keys that are not given are those of `recipe`.

    warmup : epochs in which the learning rate rises from 0, with `schedule: cosine`
    schedule : `cosine` lets it fall to 0 over `epochs`; `plateau` divides it by 5 when half of `patience` has passed
        without a better epoch
    weight_decay : of `adamw`, times the learning rate
    block_rate : each block's learning rate and weight decay are this times those of the block after it; the head has
        the full rate
    head_first : epochs in which only the head trains (LP-FT, Kumar et al., ICLR 2022)
    head : `dense`, the talk's two hidden layers of `dense_units` on the flattened feature maps, or `pooled`, one layer
        on their global average
    sampling_power : with `balance: sampling`, each image's weight is its class's size to the power of minus this
    average : the momentum of a moving average of the weights, which is scored and kept; lower in the first steps, 0 is
        off
    stop_on : what decides the best epoch and early stopping, on the validation images
    test_flips : whether predictions are the mean over the flips that `augment` allows
    """

    recipe: Literal["talk", "modern"] = "talk"
    batch_size: PositiveInt
    epochs: PositiveInt
    patience: PositiveInt
    optimizer: Optimizer
    learning_rate: Rate
    warmup: Count
    schedule: Literal["none", "cosine", "plateau"]
    weight_decay: Strength
    block_rate: Part
    head_first: Count
    head: Literal["dense", "pooled"]
    dense_units: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    dropout: Share
    scaling: Scaling
    balance: Balance
    sampling_power: Strength
    label_smoothing: Share
    average: Share
    stop_on: Literal["loss", "macro_f1"]
    augment: Augmentation
    test_flips: bool
    fraction: Part
    precision: Precision

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        return {**RECIPES.get(str(values.get("recipe", "talk")), {}), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fit_together(self) -> "TrainParams":
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay: {self.weight_decay:g} is for optimizer: adamw, not {self.optimizer}")
        if 0 < self.augment.mixup < LEAST_MIXUP:
            raise ValueError(f"augment.mixup is {self.augment.mixup:g}; expected 0 or at least {LEAST_MIXUP}")
        if self.augment.mixup and self.balance == "class_weights":
            raise ValueError("augment.mixup mixes labels, so it needs balance: none or sampling, not class_weights")
        if self.warmup and self.schedule != "cosine":
            raise ValueError(f"warmup: {self.warmup} is for schedule: cosine, not {self.schedule}")
        if max(self.warmup, self.head_first) >= self.epochs:
            raise ValueError(f"warmup and head_first must be less than epochs, which is {self.epochs}")
        return self

    def on(self, dataset: str) -> "TrainParams":
        """Return the recipe for one data set: `flips: auto` is decided."""
        if self.augment.flips != "auto":
            return self
        flips = "any" if dataset in ANY_WAY_UP else "horizontal"
        return self.model_copy(update={"augment": self.augment.model_copy(update={"flips": flips})})

    @property
    def changes_images(self) -> bool:
        """Whether a network sees other images than the prepared ones, in training or for predictions."""
        return self.augment != Augmentation() or len(self.flip_axes) > 1

    @property
    def flip_axes(self) -> tuple[tuple[int, ...], ...]:
        """The axes along which images (n, height, width, channels) are flipped for each prediction of a mean."""
        if not self.test_flips or self.augment.flips == "none":
            return ((),)
        return ((), (2,)) if self.augment.flips == "horizontal" else ((), (1,), (2,), (1, 2))


TALK: dict[str, Any] = {
    "epochs": 60, "patience": 5, "optimizer": "adam", "learning_rate": 1e-4, "warmup": 0, "schedule": "none",
    "weight_decay": 0.0, "block_rate": 1.0, "head_first": 0, "head": "dense", "dense_units": [256, 256],
    "dropout": 0.5, "balance": "none", "sampling_power": 1.0, "label_smoothing": 0.0, "average": 0.0,
    "stop_on": "loss", "augment": Augmentation(), "test_flips": False,
}  # fmt: skip
MODERN: dict[str, Any] = {
    "epochs": 16, "patience": 16, "optimizer": "adamw", "learning_rate": 1e-4, "warmup": 2, "schedule": "cosine",
    "weight_decay": 1e-3, "block_rate": 1.0, "head_first": 0, "head": "pooled", "dense_units": [256, 256],
    "dropout": 0.4, "balance": "sampling", "sampling_power": 0.5, "label_smoothing": 0.1, "average": 0.997,
    "stop_on": "macro_f1", "test_flips": True,
    "augment": Augmentation(flips="auto", crop=0.75, brightness=0.2, contrast=0.2, saturation=0.2),
}  # fmt: skip
RECIPES = {"talk": TALK, "modern": MODERN}

# What a configuration may replace.
Overrides = create_model(
    "Overrides",
    __base__=Section,
    **{
        name: (field.rebuild_annotation() | None, None)
        for name, field in TrainParams.model_fields.items()
        if name not in ("batch_size", "precision")
    },  # type: ignore[call-overload]
)
