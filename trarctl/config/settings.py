"""The settings and their limits: four small frozen classes, one per concern.

Every field says what it is, its unit and its limits; an unknown key is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Dataset = Literal["vqa", "clevr", "easy-vqa"]
SPLITS: dict[str, tuple[str, ...]] = {
    "vqa": ("train", "train+val", "train+val+vg"),
    "clevr": ("train", "train+val"),
    "easy-vqa": ("train", "train+val"),
}


def contradiction(message: str, *keys: str) -> PydanticCustomError:
    """An error between several settings; ``keys`` let ``sources`` find out which flag or file to blame."""
    return PydanticCustomError("contradiction", "{message}", {"message": message, "keys": keys})


class Frozen(BaseModel):
    """Immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_as_number(cls, value: object, info: ValidationInfo) -> object:
        """Python counts True as 1: nobody means that."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        values = value if isinstance(value, list | tuple) else [value]
        if annotation is not bool and any(isinstance(one, bool) for one in values):
            raise PydanticCustomError("switch", "must not be true or false")
        return value


class DataSettings(Frozen):
    """Which prepared data to read, and which of it to train on."""

    dataset: Dataset = Field("vqa", description="data set whose recipe and metrics apply")
    path: Path | None = Field(None, description="prepared folder; default: data/DATASET/prepared")
    split: str = Field("train", description="splits to train on, joined by +: train, train+val, train+val+vg")
    later_split: str | None = Field(None, description="splits to train on from later_split_epoch on, as split")
    later_split_epoch: PositiveInt | None = Field(None, description="epoch index, from 0, that later_split begins at")
    num_workers: int = Field(2, ge=0, le=64, description="threads per process that assemble batches; 0: none")


class ModelSettings(Frozen):
    """The shape of TRAR; what the data fixes (vocabulary, answers, feature width) is not here.

    Source: TRAR (ICCV 2021), section 3; sizes as published.
    """

    num_layers: PositiveInt = Field(6, le=64, description="language layers, and as many visual layers")
    hidden_size: PositiveInt = Field(512, description="width D of every layer; a multiple of num_heads, even")
    num_heads: PositiveInt = Field(8, description="attention heads H")
    feed_forward_size: PositiveInt = Field(2048, description="inner width of the feed-forward layers")
    dropout: Fraction = Field(0.1, description="probability of dropping an element, 0 <= p < 1")
    word_embedding_size: PositiveInt = Field(300, description="width E of the word embedding; that of the vectors")
    flat_mlp_size: PositiveInt = Field(512, description="inner width of the attention pooling in the head")
    flat_glimpses: PositiveInt = Field(1, description="glimpses of the attention pooling in the head")
    flat_out_size: PositiveInt = Field(1024, description="width of the pooled image and question")
    spans: tuple[NonNegativeInt, ...] = Field(
        (0, 1, 2, 3), min_length=1, description="attention spans: 0 sees the whole grid, r > 0 the cells within r"
    )
    grid_size: PositiveInt = Field(8, description="cells S along one side of the image grid; N = S * S")
    routing: Literal["soft", "hard"] = Field("soft", description="blend the spans, or choose by Gumbel softmax")
    pooling: Literal["avg", "attention", "fc"] = Field("avg", description="how a router sums up the image")
    binarize: bool = Field(False, description="use only the heaviest span in evaluation; hard routing only")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise contradiction(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}",
                "model.hidden_size",
                "model.num_heads",
            )
        if self.hidden_size % 2:
            raise contradiction(
                f"hidden_size {self.hidden_size} must be even: the router halves it", "model.hidden_size"
            )
        if self.binarize and self.routing != "hard":
            raise contradiction("binarize needs hard routing, got routing 'soft'", "model.binarize", "model.routing")
        return self


class TrainSettings(Frozen):
    """How the weights are learned."""

    epochs: PositiveInt = Field(13, description="passes over the training split")
    batch_size: PositiveInt = Field(64, description="samples of one optimizer step, over all GPUs and parts")
    accumulation: PositiveInt = Field(1, description="parts that a batch is split into; must divide batch_size")
    learning_rate: PositiveFloat = Field(1e-4, description="base rate of Adam")
    warmup_epochs: int = Field(3, ge=0, description="the rate rises in four stages over the first warmup_epochs + 1")
    decay_epochs: tuple[NonNegativeInt, ...] = Field(
        (10, 12), description="epoch indices, from 0, at whose start the rate falls"
    )
    decay_factor: PositiveFloat = Field(0.2, le=1, description="what the rate is multiplied by at each of them")
    adam_betas: tuple[Fraction, Fraction] = Field((0.9, 0.98), description="decay rates of Adam's two averages")
    adam_epsilon: PositiveFloat = Field(1e-9, description="term in Adam's denominator")
    gradient_clip: PositiveFloat | None = Field(None, description="largest norm of the whole gradient; none: no limit")
    loss: Literal["bce", "kld", "ce"] = Field(
        "bce", description="binary cross entropy (VQA), Kullback-Leibler divergence (VQA) or cross entropy (CLEVR)"
    )
    loss_reduction: Literal["sum", "mean"] = Field(
        "sum", description="over a batch; mean averages over its elements as torch does"
    )
    temperature_policy: Literal[0, 1, 2] = Field(1, description="hard routing: 0 slow, 1 fast, 2 finetune")
    temperature_max: PositiveFloat = Field(10.0, description="temperature of the first epoch")
    temperature_min: PositiveFloat = Field(0.1, description="temperature that no epoch goes below")
    shuffle: bool = Field(True, description="a new order of samples in each epoch; false: the order of the files")
    seed: int = Field(0, ge=0, lt=2**31, description="of start weights, dropout, noise and the order of samples")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.accumulation:
            raise contradiction(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}"
                f" (nearest that do: {nearest_divisors(self.batch_size, self.accumulation)})",
                "train.accumulation",
                "train.batch_size",
            )
        if self.temperature_min > self.temperature_max:
            raise contradiction(
                f"temperature_min {self.temperature_min} is above temperature_max {self.temperature_max}",
                "train.temperature_min",
                "train.temperature_max",
            )
        return self


class RunSettings(Frozen):
    """Where a run lives and on what it runs."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run's folder")
    folder: Path = Field(Path("runs"), description="folder that holds the runs")
    gpus: str | None = Field(None, description="GPU indices joined by commas, or cpu; default: a GPU if there is one")
    num_threads: PositiveInt | None = Field(
        None, le=1024, description="CPU threads of a process; none: its share of the cores. Small models want 1"
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of matrix products; weights, optimizer, softmax and loss stay float32"
    )
    compile: bool = Field(False, description="compile the model with torch.compile; for GPUs, slower on a CPU")
    max_restarts: int = Field(0, ge=0, le=100, description="times that lost processes are started again")
    timeout_seconds: PositiveFloat = Field(600.0, description="seconds after which waiting for a lost process ends")
    save_every: str | None = Field(
        None,
        pattern=r"^[1-9]\d*(m|min)?$",
        description="checkpoints within an epoch: every so many steps (500) or minutes (10m)",
    )
    validate_every: int = Field(1, ge=0, description="epochs between validations; 0: never")
    log_every: PositiveInt = Field(50, description="optimizer steps between two lines of metrics.jsonl")
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="where to send curves beside metrics.jsonl; each is an extra to install"
    )
    keep: int = Field(0, ge=0, description="latest epochs to keep checkpoints of, beside the best; 0: all")


class Settings(Frozen):
    """Everything that decides a run."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _loss_fits(self) -> Self:
        allowed = ("bce", "kld") if self.data.dataset == "vqa" else ("ce",)
        if self.train.loss not in allowed:
            raise contradiction(
                f"loss {self.train.loss!r} does not fit {self.data.dataset}: use {' or '.join(allowed)}",
                "train.loss",
                "data.dataset",
            )
        return self

    @model_validator(mode="after")
    def _split_fits(self) -> Self:
        splits = SPLITS[self.data.dataset]
        for key in ("split", "later_split"):
            split = getattr(self.data, key)
            if split not in (*splits, None):
                raise contradiction(
                    f"{key} {split!r} is none that {self.data.dataset} trains on: use {' or '.join(splits)}",
                    f"data.{key}",
                    "data.dataset",
                )
        return self

    @model_validator(mode="after")
    def _later_split_begins(self) -> Self:
        split, epoch = self.data.later_split, self.data.later_split_epoch
        if (split is None) != (epoch is None):
            given, lacking = ("later_split", "later_split_epoch")[:: 1 if epoch is None else -1]
            raise contradiction(f"{given} needs {lacking}", f"data.{given}", f"data.{lacking}")
        if epoch is not None and epoch >= self.train.epochs:
            raise contradiction(
                f"later_split_epoch {epoch} is not reached in {self.train.epochs} epochs: the last has index "
                f"{self.train.epochs - 1}",
                "data.later_split_epoch",
                "train.epochs",
            )
        return self


def nearest_divisors(whole: int, part: int) -> str:
    """Name the divisors of ``whole`` next below and above ``part``, for error messages."""
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    below = [n for n in divisors if n < part][-1:]
    above = [n for n in divisors if n > part][:1]
    return " and ".join(map(str, below + above))
