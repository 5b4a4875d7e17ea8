"""The settings of `rerank-udf train`: conf/train.yaml as pydantic models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rerank_udf.config import Settings, Source

CANDIDATES, RANDOM = "candidates", "random"


class TrainingInput(Settings):
    """Three tables in the job's own contract; a `lang` column in the last two is used where it is there."""

    candidates: Source
    queries: Source
    passages: Source


class Teacher(Settings):
    """Scores to learn from: a table of (query_id, passage_id, `column`), or a score store of Parquet.

    They are logits of the teacher's softmax over a list after multiplying with `scale` (50 for the cosines of an
    embedding model, 1 for a cross-encoder's logits).
    """

    table: Source | None = None
    column: str = "logit"
    store: str | None = None
    model_key: str | None = None
    scale: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _one_origin(self) -> Teacher:
        if (self.table is None) == (self.store is None):
            raise ValueError("a teacher is exactly one of table (a source) or store (a path)")
        return self


class Negatives(Settings):
    """How many passages of a list come from where.

    `ranking`: candidates, a name in `rankings`, or random; `ranks` from 1, both ends in, among those of the language.
    `language`: that of the list's right passage; or the query's own: where the answer is in another language, a first
    stage over several lists passages of both; or any.
    """

    ranking: str = CANDIDATES
    ranks: tuple[int, int] = (1, 20)
    count: int = Field(ge=1)
    language: Literal["passage", "query", "any"] = "passage"

    @model_validator(mode="after")
    def _ranks_in_order(self) -> Negatives:
        if not 1 <= self.ranks[0] <= self.ranks[1]:
            raise ValueError(f"ranks are [first, last] from 1, found {list(self.ranks)}")
        return self


class HeldOut(Settings):
    """What is kept from training to measure it: `queries` of them, with everything of their groups.

    A group is a passage (`by: passage`: the relevant one; without qrels, that which the teacher puts first) or a query;
    where `group` is a regular expression, what its first parenthesis matches in the id, so that a page in ten languages
    is one group. With `share`, that share of all groups is held out, by their names alone, and `queries` of them at
    most are measured: sets over the same passages hold out the same ones.
    """

    by: Literal["passage", "query"] = "passage"
    group: str | None = None
    queries: int = Field(default=100, ge=0)
    share: float | None = Field(default=None, gt=0, lt=1)
    depth: int = Field(default=20, ge=2)

    @field_validator("group")
    @classmethod
    def _has_a_parenthesis(cls, group: str | None) -> str | None:
        try:
            groups = 1 if group is None else re.compile(group).groups
        except re.error as problem:
            raise ValueError(f"{group!r} is no regular expression: {problem}") from problem
        if not groups:
            raise ValueError(
                f"{group!r} has no parenthesis: what its first one matches in an id is the group"
            )
        return group


class TrainingSet(Settings):
    """One set of tables, and how lists are drawn from it.

    `languages`: which relevant (or, without qrels, which candidate) passages a list may hold: any, those in the
    query's own language, or those in another one; the other passages of a list are in the language of its first.
    `max_lengths`: tokens of a pair → share of the lists that are cut there.
    """

    name: str
    input: TrainingInput
    rankings: dict[str, Source] = Field(default={})
    qrels: Source | None = None
    teacher: Teacher | None = None
    weight: float = Field(default=1.0, gt=0)
    languages: Literal["any", "same", "other"] = "any"
    negatives: list[Negatives] = Field(
        default=[Negatives(count=5), Negatives(ranking=RANDOM, count=2)],
        min_length=1,
    )
    max_lengths: dict[Annotated[int, Field(ge=8, le=8192)], Annotated[float, Field(gt=0)]] = Field(
        default={256: 1.0}, min_length=1
    )
    held_out: HeldOut = HeldOut()

    def sources(self) -> dict[str, Source]:
        """Every table of the set by the name it has in it."""
        found = {
            "queries": self.input.queries,
            "passages": self.input.passages,
            CANDIDATES: self.input.candidates,
            "qrels": self.qrels,
            "teacher": None if self.teacher is None else self.teacher.table,
            **{f"rankings.{name}": source for name, source in self.rankings.items()},
        }
        return {name: source for name, source in found.items() if source is not None}

    @model_validator(mode="after")
    def _something_to_learn(self) -> TrainingSet:
        if self.qrels is None and self.teacher is None:
            raise ValueError(f"the set {self.name} has neither qrels nor a teacher: nothing to learn from")
        known = {CANDIDATES, RANDOM, *self.rankings}
        for one in self.negatives:
            if one.ranking not in known:
                known_names = ", ".join(sorted(known))
                raise ValueError(f"negatives of the ranking {one.ranking!r}: expected one of {known_names}")
        return self


class Loss(Settings):
    """Softmax cross-entropy over a list, plus `bce_weight` × binary cross-entropy, plus the teacher's part.

    The teacher's part is the KL divergence from its distribution over the list, times `teacher_weight` where there is
    also a relevant passage, times 1 where there is none.
    """

    bce_weight: float = Field(default=0.2, ge=0)
    teacher_weight: float = Field(default=0.3, ge=0)


class Optimizer(Settings):
    """AdamW; a layer's rate is `layer_decay` times that of the layer above it."""

    learning_rate: float = Field(default=2e-5, gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)


class Schedule(Settings):
    """Steps in all: warm-up, constant, and the last `decay` share straight down to zero.

    While it runs, `evaluate_queries` of each set's held-out queries are measured, all of them at its end. A finished
    run is prolonged by more `steps` and the same command: it goes on from the last checkpoint before the
    decay. Fewer are possible while a run is not beyond the step where their decay begins.
    """

    steps: int = Field(ge=1)
    warmup_steps: int = Field(default=100, ge=0)
    decay: float = Field(default=0.15, ge=0, le=1)
    lists_per_step: int = Field(default=8, ge=1)
    save_every: int = Field(default=200, ge=1)
    evaluate_every: int = Field(default=1000, ge=1)
    evaluate_queries: int = Field(default=30, ge=1)
    average_last: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _warm_before_the_decay(self) -> Schedule:
        begins = self.decay_begins
        if self.warmup_steps > begins:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps:,}) are not over when the decay begins, at step {begins:,}: "
                f"the rate would never be optimizer.learning_rate; set warmup_steps to {begins // 3:,}, or more steps"
            )
        return self

    @property
    def decay_begins(self) -> int:
        """The first step whose rate is below the constant one."""
        return self.steps - round(self.steps * self.decay)


class Freeze(Settings):
    """What keeps the base model's weights: the embeddings, and the lowest `layers`."""

    embeddings: bool = False
    layers: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _from_the_bottom(self) -> Freeze:
        if self.layers and not self.embeddings:
            raise ValueError("layers are frozen from the bottom: set embeddings to true as well")
        return self


def _nothing_for_null(value: object) -> object:
    return {} if value is None else value


class Card(Settings):
    """What the model's README.md says that the run cannot know; null: `output.card` has words of its own."""

    name: str | None = None
    description: str | None = None
    base: str | None = None
    licence: str | None = None
    licences: Annotated[dict[str, str | None], BeforeValidator(_nothing_for_null)] = Field(default={})
    limits: str | None = None


class TrainingConfig(Settings):
    """Everything in conf/train.yaml.

    `max_tokens_per_batch`: padded tokens that go through the model at once; None: 2,400 on a CPU, 8,192 on a card.
    """

    base: str
    revision: str | None = None
    new_head: bool = False
    sets: list[TrainingSet] = Field(min_length=1)
    long_passages: Literal["best", "head"] = "head"
    drop_above_gold: float | None = Field(default=None, ge=0)
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule
    freeze: Freeze = Freeze()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_tokens_per_batch: int | None = Field(default=None, ge=64)
    seed: int = 0
    output: str = "out/model"
    output_precision: Literal["float32", "float16"] = "float32"
    work: str = "out/training"
    card: Annotated[Card, BeforeValidator(_nothing_for_null)] = Card()

    def needs_spark(self) -> bool:
        """Whether a table is anything but a local Parquet path read as it is."""
        return any(not one.is_plain_parquet() for single in self.sets for one in single.sources().values())

    @model_validator(mode="after")
    def _output_replaces_nothing_else(self) -> TrainingConfig:
        target = Path(self.output).absolute()
        for name, place in (("work", self.work), ("base", self.base)):
            other = Path(place).absolute()
            if target in (other, *other.parents):
                raise ValueError(
                    f"output ({self.output}) is or holds {name} ({place}), and the model replaces that whole folder; "
                    "give it one of its own"
                )
        return self

    @model_validator(mode="after")
    def _work_is_no_file(self) -> TrainingConfig:
        work = Path(self.work).absolute()
        file = next((one for one in (work, *work.parents) if one.is_file()), None)
        if file is not None:
            raise ValueError(f"work is {self.work}, but {file} is a file; give a folder for the checkpoints")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> TrainingConfig:
        names = [one.name for one in self.sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the set name {twice[0]!r} is used twice; give each set its own")
        return self
