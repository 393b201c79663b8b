"""Every setting of a run, declared and validated once.

A run is described by one TOML file; every field below may also be set on the command line as
``--set section.field=value``. Unknown names are refused, so a typing error cannot pass silently.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.config_errors import wrong
from shared.errors import MesofedError
from shared.methods import METHODS
from shared.program import command
from shared.suggestion import check_choices
from shared.tasks import ALIKE, TASKS

Format = Literal["auto", "fp32", "bf16", "int8", "nf4"]

# The most that a release may ask a device about itself: its place in an embedding space of so many
# axes, seen through so many weights. Devices refuse more, whatever a server would like to know.
MAX_EXPERTS = 16
MAX_ANCHORS = 64
MAX_DIMENSIONS = 16
# And the most of a person's own items that a release may put before each question.
MAX_EXAMPLES = 8
MIN_EXAMPLE_TOKENS, MAX_EXAMPLE_TOKENS = 32, 256


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusConfig(Section):
    """Where people come from and how they are divided between server and devices."""

    source: Literal["synthetic", "lamp", "jsonl"] = Field(
        "synthetic", description="the built-in corpus, LaMP's files, or one person a line"
    )
    path: str = Field("", description="jsonl: the file; lamp: the questions file")
    outputs: str = Field("", description="lamp: the outputs file; default: beside the questions")
    task: str = Field("", description="expected task; default: what the file says")
    bad_input: Literal["error", "skip"] = Field(
        "error", description="stop at bad input, or leave it out, count it and report it"
    )
    server_users: int = Field(32, ge=2, description="at most so many users give their data")
    device_users: int = Field(16, ge=1, description="at most so many users stay private")
    max_history: int = Field(12, ge=1, description="newest history items used per user")
    max_queries: int = Field(6, ge=1, description="newest queries used per user")
    groups: int = Field(4, ge=2, le=6, description="synthetic: latent groups of users")


class BaseConfig(Section):
    """The frozen causal language model."""

    name: str = Field("smollm2", description="tiny, smollm2, or a Hugging Face id or folder")
    format: Format = Field(
        "auto",
        description="of the frozen weights; auto: bf16 where the device multiplies it, else fp32",
    )
    top_layers: int = Field(
        10, ge=0, description="so many topmost layers carry LoRAs, the rest runs once; 0: all do"
    )
    max_tokens: int = Field(128, ge=16, description="prompt and answer are cut to so many tokens")
    batch_memory_mb: int = Field(
        768, ge=1, description="users train in one batch as far as so much memory goes"
    )
    cache_mb: int = Field(
        1024, ge=1, description="remembered outputs of the lower layers; the rest is on disk"
    )


class TrainingConfig(Section):
    """How the population LoRA is trained: AdamW on answer tokens, linear warm-up, cosine decay."""

    rank: int = Field(8, ge=1, description="of the LoRA")
    epochs: int = Field(2, ge=1, description="passes over the samples")
    batch_size: int = Field(8, ge=1, description="samples per step")
    learning_rate: float = Field(4e-3, gt=0, description="after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    clip_norm: float = Field(1.0, gt=0, description="gradient norm bound of one user")


class ExpertsConfig(TrainingConfig):
    """Group experts and their user-aware router, trained jointly."""

    rank: int = Field(4, ge=1, description="of each expert")
    epochs: int = Field(1, ge=1, description="of joint training, after one pass on clusters")
    learning_rate: float = Field(2e-3, gt=0, description="of the experts, after the warm-up")
    count: int = Field(4, ge=2, le=MAX_EXPERTS, description="group experts")
    balance: float = Field(0.1, ge=0, description="weight of the load-balance term")
    router_learning_rate: float = Field(1e-2, gt=0, description="of the user-aware router")


class BankConfig(TrainingConfig):
    """Meta-LoRAs of the anchor users."""

    rank: int = Field(4, ge=1, description="of each meta-LoRA")
    learning_rate: float = Field(2e-3, gt=0, description="after the warm-up")
    anchors: int = Field(8, ge=1, le=MAX_ANCHORS, description="anchor users")
    min_history: int = Field(4, ge=1, description="an anchor has at least so many items")
    top_k: int = Field(2, ge=1, description="anchors that a device fuses")
    temperature: float = Field(0.2, ge=1e-6, description="softmax temperature over similarities")
    dp_epsilon: float = Field(
        0.0,
        ge=0,
        description="differential privacy of the bank for one sample of an anchor, all rounds "
        "together; clip_norm then bounds each sample's gradient; 0: off",
    )
    dp_delta: float = Field(1e-5, gt=0, lt=1, description="of dp_epsilon")


class RetrievalConfig(Section):
    """BM25 over the person's own history."""

    item_tokens: int = Field(
        64,
        ge=MIN_EXAMPLE_TOKENS,
        le=MAX_EXAMPLE_TOKENS,
        description="a retrieved item is cut to so many tokens",
    )


class ExamplesConfig(RetrievalConfig):
    """A person's own items that stand before each question, in training and when asked."""

    items: int = Field(
        0, ge=0, le=MAX_EXAMPLES, description="own items before each question; 0: none"
    )
    tasks: tuple[str, ...] = Field(
        ALIKE,
        description="whose questions have them; free text whose history was asked the same",
    )

    @field_validator("tasks")
    @classmethod
    def _tasks_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_choices(names, TASKS)
        if not names:
            raise ValueError("expected at least one; got none. For no items: retrieval.items=0")
        return tuple(dict.fromkeys(names))


class PrivateConfig(TrainingConfig):
    """What a device trains for itself."""

    rank: int = Field(8, ge=1, description="of the user LoRA")
    epochs: int = Field(3, ge=1, description="passes over the history")
    batch_size: int = Field(4, ge=1, description="samples per step")
    learning_rate: float = Field(2e-3, gt=0, description="of the user LoRA, after the warm-up")
    stack_rank: int = Field(2, ge=1, le=4, description="rank of the ultra-low-rank stack")
    stack_learning_rate: float = Field(
        4e-3, gt=0, description="for the stack: fewer ranks move the update less at equal rates"
    )
    weights_learning_rate: float = Field(0.02, gt=0, description="for tuned fusion weights")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the private part's inputs that a step leaves out"
    )
    holdout: float = Field(
        0.0, ge=0, le=0.5, description="share of the newest history kept to stop early by; 0: none"
    )


class RoundsConfig(Section):
    """The federated rounds."""

    count: int = Field(1, ge=1, description="rounds, a release each")
    quorum: float = Field(0.5, gt=0, le=1, description="share of devices a round needs")
    deadline_seconds: float = Field(3600.0, gt=0, description="of each wait for devices")
    devices: int = Field(
        0, ge=0, description="deployment: devices to wait for; the whole corpus is the server's"
    )


class PrivacyConfig(Section):
    """Differential privacy of the router statistics, for one person over all rounds.

    The noise is not set here: it follows from the budget. A device answers the questions of its
    own mode and no others, and stops when its own budget is spent.
    """

    mode: Literal["off", "local", "central"] = Field(
        "off", description="noise on each device alone, or in the secure sum of all"
    )
    epsilon: float = Field(8.0, gt=0, le=100, description="of all rounds together")
    delta: float = Field(1e-5, gt=0, le=1e-2, description="below one over the number of devices")
    rounds: int = Field(0, ge=0, description="rounds that share the budget; 0: rounds.count")
    honest_share: float = Field(
        0.67,
        ge=0.5,
        le=1,
        description="central: of the devices that join a sum, so many tell nobody their noise",
    )
    minimum_devices: int = Field(
        3, ge=3, le=10_000, description="central: a device joins no smaller sum"
    )


class ReleaseConfig(Section):
    """How releases are signed."""

    keys: str = Field("", description="folder of the server's signing key; default: <run>/keys")


class ExperimentConfig(Section):
    """What every experiment needs: people, a base model, and how each part is trained."""

    threads: int = Field(0, ge=0, description="torch threads; 0: one per core")
    adapt: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of the linear maps that carry LoRAs",
    )
    corpus: CorpusConfig = CorpusConfig()
    base: BaseConfig = BaseConfig()
    population: TrainingConfig = TrainingConfig()
    experts: ExpertsConfig = ExpertsConfig()
    bank: BankConfig = BankConfig()
    private: PrivateConfig = PrivateConfig()

    @model_validator(mode="after")
    def _source_has_a_path(self) -> Self:
        if self.corpus.source != "synthetic" and not self.corpus.path:
            raise ValueError(f"corpus.source={self.corpus.source} needs corpus.path=FILE")
        if self.corpus.source == "synthetic" and self.corpus.path:
            raise ValueError("corpus.path needs corpus.source=jsonl or corpus.source=lamp")
        return self


class RunConfig(ExperimentConfig):
    """One run: everything that decides its result."""

    seed: int = Field(7, ge=0, description="decides every draw of a simulation, and all training")
    engine: Literal["local", "ray"] = Field("local", description="what a simulation runs on")
    methods: tuple[str, ...] = Field(
        ("base", "population", "oppu", "proper-folded", "mta-exact", "meso"),
        description="what devices are personalised by and evaluated with; in shared/methods.py",
    )
    rounds: RoundsConfig = RoundsConfig()
    retrieval: ExamplesConfig = ExamplesConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    release: ReleaseConfig = ReleaseConfig()

    @field_validator("methods")
    @classmethod
    def _methods_are_declared(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            check_choices(names, METHODS)
        except ValueError as error:
            more = f"More methods, the papers' own: `{command('compare')}`"
            raise ValueError(f"{error}. {more}") from error
        return names

    @model_validator(mode="after")
    def _budget_covers_the_rounds(self) -> "RunConfig":
        if 0 < self.privacy.rounds < self.rounds.count and self.privacy.mode != "off":
            raise ValueError(
                f"privacy.rounds={self.privacy.rounds} is fewer than rounds.count="
                f"{self.rounds.count}: devices would stop answering; set it to 0 or raise it"
            )
        return self

    @model_validator(mode="after")
    def _an_item_is_in_one_sample(self) -> Self:
        if self.bank.dp_epsilon and self.retrieval.items:
            raise ValueError(
                "bank.dp_epsilon covers one sample of an anchor, but with retrieval.items an own "
                "item stands in later samples too; set one of them to 0"
            )
        return self

    @property
    def budget_rounds(self) -> int:
        """How many rounds the privacy budget is for."""
        return self.privacy.rounds or self.rounds.count


Settings = TypeVar("Settings", bound=ExperimentConfig)


def _override(data: dict[str, Any], assignment: str) -> None:
    """Write one ``section.field=value`` into nested data; the value is TOML, else a string."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise MesofedError(f"Expected --set section.field=value; got {assignment!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, field = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise MesofedError(f"--set {assignment}: {section!r} is a value, not a section.")
    data[field] = value


def load_config(path: Path | None = None, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a run's TOML file (or the defaults), apply ``section.field=value`` overrides, validate.

    Raises
    ------
    MesofedError
        If the file cannot be read, is not TOML, or a setting is unknown or out of range.
    """
    return read_settings(RunConfig, path, overrides)


def read_settings(
    kind: type[Settings], path: Path | None = None, overrides: tuple[str, ...] = ()
) -> Settings:
    """Read settings of any kind that has a corpus, as :func:`load_config` reads a run's."""
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise MesofedError(f"Cannot read the config {path}: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise MesofedError(f"Expected TOML in {path}; {error}.") from error
    for assignment in overrides:
        _override(data, assignment)
    try:
        config = kind.model_validate(data)
    except ValidationError as error:
        lines = [f"  {wrong(e, kind)}" for e in error.errors(include_url=False)]
        raise MesofedError("\n".join(["The configuration is not valid:", *lines])) from error
    # A run may be resumed from another folder.
    absolute: dict[str, Section] = {"corpus": _absolute(config.corpus, "path", "outputs")}
    if isinstance(config, RunConfig):
        absolute["release"] = _absolute(config.release, "keys")
    return config.model_copy(update=absolute)


def _absolute(section: Section, *names: str) -> Section:
    """Return a section whose paths, where they are set, are absolute."""
    paths = {name: getattr(section, name) for name in names}
    return section.model_copy(
        update={name: str(Path(path).resolve()) for name, path in paths.items() if path}
    )


def require_devices(privacy: PrivacyConfig, devices: int) -> None:
    """Refuse a secure sum of fewer devices than may ever open one, before anything is trained.

    Raises
    ------
    MesofedError
        If ``privacy.mode`` is central and there are too few devices.
    """
    if privacy.mode == "central" and devices < privacy.minimum_devices:
        raise MesofedError(
            f"Expected at least {privacy.minimum_devices} devices for privacy.mode=central "
            f"(privacy.minimum_devices), for a sum of fewer is never opened; got {devices}. Have "
            "more devices, or choose another mode."
        )


def require_anchor(min_history: int, histories: Sequence[int]) -> None:
    """Refuse a bank that nobody has enough history for, by the items of each server user.

    Raises
    ------
    MesofedError
        If no server user may be an anchor.
    """
    if max(histories) < min_history:
        raise MesofedError(
            f"Expected a server user with at least {min_history} history items to be an anchor; "
            f"the longest history among them has {max(histories)}. Lower bank.min_history."
        )


def with_format(config: Settings, held: Format) -> Settings:
    """Return the settings with a format in place of ``auto``.

    A run keeps the one that it began with, for it may go on where ``auto`` comes to another.
    """
    base = config.base.model_copy(update={"format": held})
    return config.model_copy(update={"base": base})


def dump_config(config: ExperimentConfig) -> str:
    """Return the configuration as TOML that ``read_settings`` reads back to an equal value."""
    return tomli_w.dumps(config.model_dump(mode="json"))
