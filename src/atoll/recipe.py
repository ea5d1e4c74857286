"""Recipe: everything that decides the bits of a run, and its digest.

Only `[run]` (cadences of checkpoints and validation) is outside the digest. A recipe knows nothing
of islands, chips or time; that is `atoll.fleet`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from atoll import facts, strict, units
from atoll.digest import digest_of
from atoll.errors import InputError
from atoll.facts.scaling import Rule, rule_of
from atoll.model import Count, Model
from atoll.strict import Noun

LATER_DEFAULTS: Mapping[str, object] = {
    "model.gated": True,
    "model.shared_experts": 0,
    "model.dense_layers": 0,
    "model.moe_every": 1,
    "exchange.steps": 100,
    "guard.on_spike": "none",
    "guard.window": 32,
    "guard.after": 0,
    "guard.limit": 8,
    "guard.every": 64,
    "guard": {},  # a table of later keys goes last: it is left out when nothing is left in it
}
"""Dotted key -> default of keys that came after the first release; see `Recipe.expanded`."""


class CorpusShare(Noun):
    """One corpus of a mixture; weights are relative."""

    corpus: str = Field(min_length=1, examples=["shakespeare"])
    weight: float = Field(gt=0, examples=[1.0])


class TokenizerSpec(Noun):
    """Where the tokenizer comes from; exactly one of `train`, `path`, `from`.

    `train` is the vocabulary of a byte-level BPE trained on the corpus; `path` names a
    tokenizer.json; `from` names one that ships inside a package.
    """

    train: int | None = Field(default=None, ge=257, le=2**20)
    path: str | None = Field(default=None, min_length=1)
    from_: str | None = Field(default=None, min_length=1, alias="from")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("train", "path", "from_") if getattr(self, name) is not None]
        if len(given) != 1:
            fix = '{ train = 4096 } or { path = "tokenizer.json" } or { from = "smollm2" }'
            raise InputError("takes exactly one of train, path, from", fix=fix)
        return self


class DataSpec(Noun):
    """The text: a corpus by name, path or glob, or a mixture; its tokenizer; the held-out part."""

    corpus: Annotated[
        Annotated[str, Field(min_length=1), Tag("text")]
        | Annotated[list[CorpusShare], Field(min_length=1), Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "text"),
    ] = Field(examples=["shakespeare"])
    tokenizer: TokenizerSpec = Field(examples=[{"train": 4096}])
    validation: float = Field(default=0.01, ge=0, lt=0.5)


class BatchSpec(Noun):
    """The global batch of a step and the grain: the sequences that are computed as one."""

    sequences: Count = Field(examples=[16])
    grain: Count = Field(examples=[2])

    @model_validator(mode="after")
    def _whole_grains(self) -> Self:
        if self.sequences % self.grain:
            below = self.sequences - self.sequences % self.grain
            near = f"{below} or {below + self.grain}" if below else str(self.grain)
            message = f"is not a multiple of grain = {self.grain}"
            fix = f"sequences that fit: {near}"
            raise InputError(message, key="sequences", value=self.sequences, fix=fix)
        return self

    @property
    def num_grains(self) -> int:
        """The number of grains of a step."""
        return self.sequences // self.grain


class OptimizerSpec(Noun):
    """AdamW with decoupled weight decay; `clip` bounds the gradient's norm, 0 = no clipping."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0, le=1e6, examples=[1e-3])
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0, le=1e6)
    clip: float = Field(default=1.0, ge=0)


class ScheduleSpec(Noun):
    """How long, and how the learning rate moves; `floor` is the fraction of lr left at the end.

    `tokens` is a count ("1 B"), or follows from the model: "20 a parameter", or a scaling law by
    its name ("chinchilla-epoch"; `atoll.facts.scaling`).
    """

    steps: Count | None = Field(default=None, examples=[400])
    tokens: str | None = Field(default=None, examples=["1 B"])
    warmup: int = Field(default=0, ge=0)
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    floor: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.tokens is not None:
            message = f"steps = {self.steps} and tokens are both given"
            raise InputError(message, key="tokens", value=self.tokens, fix="keep one of the two")
        if self.steps is None and self.tokens is None:
            fix = 'for example steps = 400, or tokens = "1 B"'
            raise InputError("neither steps nor tokens is given", fix=fix)
        return self

    @field_validator("tokens")
    @classmethod
    def _is_count(cls, value: str | None) -> str | None:
        if value is None or rule_of(value) is not None:
            return value
        if units.parse_count(value) < 1:
            raise InputError("must be at least 1", value=value, fix='for example "1 B"')
        return value

    @property
    def rule(self) -> Rule | None:
        """The rule by which tokens follow from the model, None where they are given."""
        return None if self.tokens is None else rule_of(self.tokens)


class PrecisionSpec(Noun):
    """The number format of forward and backward; sums and the update have their own rules."""

    compute: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"


class ExchangeSpec(Noun):
    """When islands exchange: gradients every "step", or weights in "rounds" of `steps` steps."""

    every: Literal["step", "rounds"] = "step"
    steps: Count = 100

    @model_validator(mode="after")
    def _rounds_alone_have_steps(self) -> Self:
        if self.every == "step" and self.steps != ExchangeSpec.model_fields["steps"].default:
            fix = 'write every = "rounds", or leave steps out'
            message = 'has no meaning with every = "step"'
            raise InputError(message, key="steps", value=self.steps, fix=fix)
        return self


class ExactSpec(Noun):
    """The width of the integer accumulators; "auto" decides per tensor by the bits left."""

    accumulator: Literal["auto", "int32", "int64"] = "auto"


class GuardSpec(Noun):
    """What happens at a spike: a loss or gradient norm above so many times the usual one.

    `loss` and `grad_norm` are the factors; usual is the median of the last `window` steps in the
    weights. The first `after` steps are not judged. More than `limit` spikes with fewer than
    `window` good steps in a row between them stop the run. `every` is for "roll-back": after so
    many steps the state to go back to is kept anew. See `atoll.training.guard`.
    """

    on_spike: Literal["none", "stop", "skip", "roll-back"] = "none"
    loss: float | None = Field(default=None, gt=1, le=1e6)
    grad_norm: float | None = Field(default=None, gt=1, le=1e6)
    window: int = Field(default=32, ge=1, le=4096)
    after: int = Field(default=0, ge=0)
    limit: Count = 8
    every: Count = 64

    @model_validator(mode="after")
    def _no_idle_keys(self) -> Self:
        idle: tuple[str, ...] = ()
        if self.on_spike == "none":
            idle = ("loss", "grad_norm", "window", "after", "limit", "every")
        elif self.on_spike == "stop":
            idle = ("limit", "every")
        elif self.on_spike == "skip":
            idle = ("every",)
        for key in idle:
            value = getattr(self, key)
            if value != GuardSpec.model_fields[key].default:
                message = f'has no meaning with on_spike = "{self.on_spike}"'
                fix = 'on_spike is "stop", "skip" or "roll-back"' if key != "every" else ""
                fix = fix or 'write on_spike = "roll-back", or leave every out'
                raise InputError(message, key=key, value=value, fix=fix)
        if self.on_spike != "none" and self.loss is None and self.grad_norm is None:
            fix = "for example grad_norm = 5.0, or loss = 1.5, or both"
            message = "neither loss nor grad_norm says what a spike is"
            raise InputError(message, key="on_spike", value=self.on_spike, fix=fix)
        return self


class RunSpec(Noun):
    """Cadences, in steps; outside the digest, because they change no bit of the weights.

    `keep_last` and `keep_best` count checkpoints; `validation_sequences` 0 means all.
    `double_check` is the part of all grains that two islands of one kind compute, so that silent
    corruption shows: one grain of a step, in as many steps as that takes; 0 for none.
    """

    checkpoint_every: Count = 100
    keep_last: Count = 3
    keep_best: int = Field(default=1, ge=0)
    validate_every: Count = 50
    validation_sequences: int = Field(default=64, ge=0)
    double_check: float = Field(default=0.002, ge=0, le=1)


class Recipe(Noun):
    """All that decides the bits of a run, and `[run]` beside it."""

    FILE_KEYS = ("schema",)

    name: str = Field(min_length=1, max_length=100, examples=["quickstart"])
    seed: int = Field(ge=0, lt=2**63, examples=[1])
    model: Model = Field(examples=[{"layers": 4, "width": 192, "heads": 6, "ffn": 512}])
    data: DataSpec = Field(examples=[{"corpus": "shakespeare", "tokenizer": {"train": 4096}}])
    batch: BatchSpec = Field(examples=[{"sequences": 16, "grain": 2}])
    optimizer: OptimizerSpec = Field(examples=[{"lr": 1e-3}])
    schedule: ScheduleSpec = Field(examples=[{"steps": 400}])
    precision: PrecisionSpec = PrecisionSpec()
    exchange: ExchangeSpec = ExchangeSpec()
    exact: ExactSpec = ExactSpec()
    guard: GuardSpec = GuardSpec()
    run: RunSpec = RunSpec()

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.schedule.warmup > self.total_steps():
            message = f"is longer than the run of {self.total_steps()} steps"
            value, fix = self.schedule.warmup, f"write warmup = {self.total_steps()} or less"
            raise InputError(message, key="schedule.warmup", value=value, fix=fix)
        return self

    @classmethod
    def load(cls, path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a TOML file, with overrides such as "model.layers=4".

        An override's value is read as TOML, else taken as text. InputError for whatever is wrong.
        """
        data = strict.take_schema(strict.load_toml(path), file=path)
        keys = [_override(data, text) for text in overrides]
        try:
            return cls.from_dict(data, file=path)
        except InputError as error:
            if error.key and any(_related(error.key, key) for key in keys):
                error.file = f"--set (with {path})"
            raise

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, file: Path | str | None = None) -> Recipe:
        """The recipe in plain tables, as in run.json or a plan. InputError as `load`."""
        plain = strict.take_schema(data, file=file or "recipe")
        table = plain.get("model")
        if isinstance(table, dict) and "preset" in table:
            plain["model"] = _with_preset(table, file=file)
        return strict.validate(cls, plain, file=file)

    def as_dict(self) -> dict[str, Any]:
        """All keys, `[run]` too, as plain tables that `from_dict` reads back."""
        return {**self.expanded(), "run": self.run.model_dump()}

    def total_steps(self) -> int:
        """The number of optimizer steps; a run in tokens is rounded up to whole steps.

        By a rule, tokens are counted by the parameters that take part in one of them.
        """
        if self.schedule.steps is not None:
            return self.schedule.steps
        assert self.schedule.tokens is not None
        rule = self.schedule.rule
        if rule is None:
            tokens = units.parse_count(self.schedule.tokens)
        else:
            tokens = max(1, round(rule.tokens(self._sized_model().num_active_parameters())))
        return -(-tokens // self.tokens_per_step)

    def _sized_model(self) -> Model:
        """The model with the vocabulary that the recipe asks for, whatever the text will give."""
        vocab = self.data.tokenizer.train or self.model.vocab
        if vocab is None:
            message = f'schedule.tokens = "{self.schedule.tokens}" counts parameters'
            fix = "write model.vocab, or a number of tokens"
            raise InputError(f"is not known, and {message}", key="model.vocab", fix=fix)
        return self.model.with_vocab(vocab)

    @property
    def num_grains(self) -> int:
        """The number of grains of a step."""
        return self.batch.num_grains

    @property
    def tokens_per_step(self) -> int:
        """The number of predicted tokens of a step."""
        return self.batch.sequences * self.model.context

    def expanded(self) -> dict[str, Any]:
        """All keys that decide bits, with derived values, in plain tables.

        Tokens become steps and a preset becomes its numbers, since only those decide bits. A key
        of LATER_DEFAULTS is left out while it has its default, so that digests stay what they were.
        """
        plain = self.model_dump(by_alias=True, exclude_none=True, exclude={"run"})
        plain["model"] = self.model.expanded()
        plain["schedule"].pop("tokens", None)
        plain["schedule"]["steps"] = self.total_steps()
        for key, default in LATER_DEFAULTS.items():
            *tables, last = key.split(".")
            table = plain
            for name in tables:
                table = table.get(name, {})
            if table.get(last) == default:
                table.pop(last, None)
        return plain

    def digest(self, shards_digest: str) -> str:
        """The digest of a run's bits: of the expanded recipe and of its token shards."""
        return digest_of({"recipe": self.expanded(), "shards": shards_digest})


def unsupported_features(recipe: Recipe) -> list[tuple[str, object, str]]:
    """(dotted key, value, message) of all that a plan may hold and `train` cannot carry out yet."""
    found = [(f"model.{key}", value, text) for key, value, text in recipe.model.not_computed()]
    compute, every = recipe.precision.compute, recipe.exchange.every
    if compute != "fp32":
        message = f"feature precision.compute = {compute}: only fp32 trains so far"
        found.append(("precision.compute", compute, message))
    if every != "step":
        message = f"feature exchange.every = {every}: islands exchange at every step so far"
        found.append(("exchange.every", every, message))
    return found


def require_supported(recipe: Recipe, *, file: Path | str | None = None, prefix: str = "") -> None:
    """InputError for the first feature of `unsupported_features`; it names the others too."""
    found = unsupported_features(recipe)
    if found:
        key, value, message = found[0]
        fix = "atoll plan takes it; what trains here: a dense gated model in fp32, every step"
        if others := [name for name, _, _ in found[1:]]:
            fix += "\nalso not supported: " + ", ".join(others)
        raise InputError(message, file=file, key=prefix + key, value=value, fix=fix)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """What differs between two recipes, a line a key: "model.layers: 4 here, 6 there"."""
    ours, theirs = dict(_flat(a.expanded())), dict(_flat(b.expanded()))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [
        f"{key}: {ours.get(key, 'absent')} here, {theirs.get(key, 'absent')} there"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, object]]:
    """The leaves of plain tables under dotted keys."""
    if isinstance(value, dict):
        inner = [(f"{prefix}.{key}" if prefix else key, item) for key, item in value.items()]
    elif isinstance(value, list):
        inner = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
    else:
        return [(prefix, value)]
    return [leaf for key, item in inner for leaf in _flat(item, key)]


def _with_preset(table: dict[str, Any], *, file: Path | str | None) -> dict[str, Any]:
    """A `[model]` table with its preset's keys under its own."""
    rest = dict(table)
    preset = rest.pop("preset")
    try:
        known = facts.model_preset(preset) if isinstance(preset, str) else {}
    except InputError as error:
        error.file, error.key = (None if file is None else str(file)), "model.preset"
        raise
    if not known:
        fix = "known presets: " + ", ".join(facts.model_presets())
        message = "must be text in quotes"
        raise InputError(message, file=file, key="model.preset", value=preset, fix=fix)
    for key, value in rest.items():  # a table of the preset may be changed key by key
        if isinstance(value, dict) and isinstance(known.get(key), dict):
            rest[key] = {**known[key], **value}
    return {**known, **rest}


def _override(data: dict[str, Any], text: str) -> str:
    """Puts "model.layers=4" into the tables; returns its dotted key."""
    key, equals, value = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        fix = "for example --set model.layers=4"
        raise InputError("is not key=value", file="--set", value=text, fix=fix)
    table = data
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            message = f"{name} is a value, not a table"
            raise InputError(message, file="--set", key=".".join(names), value=value)
        # A copy: the file's own tables stay as they were read.
        table[name] = table = dict(inner)
    table[names[-1]] = _toml_value(value.strip())
    return ".".join(names)


def _toml_value(text: str) -> Any:
    """`text` as a TOML value, or as it is."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if list(parsed) == ["value"] else text


def _related(fault: str, key: str) -> bool:
    """Whether a fault at one dotted key may come from an override of another."""
    return fault == key or fault.startswith(f"{key}.") or key.startswith(f"{fault}.")
