"""The configuration: a file, overrides, refusals that help."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from shared.config import ExperimentConfig, RunConfig, dump_config, load_config, read_settings
from shared.errors import MesofedError
from shared.methods import METHODS
from simulations.comparison.config import ComparisonConfig


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_there_are_the_defaults() -> None:
    assert load_config() == RunConfig()
    assert RunConfig().base.name == "smollm2"
    assert RunConfig().corpus.source == "synthetic"


def test_a_file_sets_some_fields_and_overrides_win(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'seed = 3\nmethods = ["oppu"]\n[bank]\nanchors = 5\n[base]\nname = "tiny"\n'
    )
    config = load_config(path, ("bank.anchors=6", "bank.top_k=3"))
    assert (config.seed, config.methods, config.base.name) == (3, ("oppu",), "tiny")
    assert (config.bank.anchors, config.bank.top_k) == (6, 3)
    assert config.bank.rank == RunConfig().bank.rank


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("seed=11", 11),
        ("seed = 11", 11),
        ("base.name=tiny", "tiny"),
        ('base.name="tiny"', "tiny"),
        ("base.name='a=b'", "a=b"),
        ("base.name=org/model-1.5", "org/model-1.5"),
        ("base.name=/home/me/a model", "/home/me/a model"),
        ("population.learning_rate=3e-4", 3e-4),
        ("population.learning_rate=1", 1.0),
        ('methods=["base", "meso"]', ("base", "meso")),
        ('adapt=["q_proj"]', ("q_proj",)),
        ("corpus.task=", ""),
    ],
)
def test_values_of_overrides_are_toml_or_else_text(assignment: str, value: object) -> None:
    config: Any = load_config(overrides=(assignment,))
    for name in assignment.partition("=")[0].strip().split("."):
        config = getattr(config, name)
    assert config == value
    assert type(config) is type(value)


def test_later_overrides_win() -> None:
    assert load_config(overrides=("seed=1", "seed=2")).seed == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sed=1", r"sed: there is no such setting \(did you mean 'seed'\?\); got 1$"),
        ("bank.anchor=1", r"bank\.anchor: there is no such setting \(did .* 'bank\.anchors'\?\)"),
        ("bnk.anchors=1", r"bnk: there is no such setting \(did you mean 'bank'\?\)$"),
        ("anchors=3", r"anchors: there is no such .* mean 'bank\.anchors'\?\); got 3$"),
        (
            "rank=3",
            r"mean 'population\.rank' or 'experts\.rank' or .* or 'private\.rank'\?",
        ),
        ("nonsense=1", r"nonsense: there is no such setting \(the \.toml file"),
        ("bank.anchors.count=1", r"bank\.anchors"),
        ("seed=many", "seed: expected a whole number, at least 0; got 'many'$"),
        ("seed=1.5", r"seed: expected a whole number, at least 0; got 1\.5$"),
        ("seed=-1", "seed: expected a whole number, at least 0; got -1$"),
        (
            "corpus.groups=9",
            r"corpus\.groups: expected a whole number, at least 2 and at most 6; got 9$",
        ),
        (
            "population.learning_rate=0",
            r"learning_rate: expected a number, above 0; got 0$",
        ),
        ("population.warmup=x", r"warmup: expected a number, at least 0 and below 1; got 'x'$"),
        ("base.name=7", r"base\.name: expected text; got 7$"),
        ("adapt=[1]", r"adapt\.0: expected text; got 1$"),
        ("bank=3", "bank: expected a section of settings, as .*; got 3$"),
        ("retrieval.items=9", "retrieval.items"),
        ("retrieval.tasks=[]", "retrieval.tasks"),
        ('retrieval.tasks=["thoughts"]', "retrieval.tasks"),
        ("bank.temperature=0", "bank.temperature"),
        ("bank.temperature=nan", "bank.temperature"),
        ("private.stack_rank=5", r"private\.stack_rank: .*at most 4; got 5$"),
        ("base.format=fp8", "base.format: expected auto, fp32, bf16, int8 or nf4; got 'fp8'"),
        ("engine=spark", "engine: .*; got 'spark'$"),
        ("engine=locl", r"engine: .*; got 'locl' \(did you mean 'local'\?\)$"),
        ("rounds.quorum=1.1", "rounds.quorum"),
        ("methods=[]", "methods: .*expected some of base, population"),
        ('methods=["base", "magic"]', r"meso-r4; got 'magic'\. More methods.*`.*mesofed compare`$"),
        (
            'methods=["oppo", "mes"]',
            r"got 'oppo' \(did you mean 'oppu'\?\), 'mes' \(did .*'meso'\?\)\. More methods",
        ),
        ("methods=oppu", r"""methods: expected a list, such as '\["one","two"\]'; got 'oppu'$"""),
        ("corpus.source=jsonl", "needs corpus.path=FILE"),
        ("seed", "Expected --set section.field=value; got 'seed'"),
        ("=3", "Expected --set section.field=value"),
    ],
)
def test_what_cannot_be_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(MesofedError, match=message):
        load_config(overrides=(assignment,))


def test_a_value_is_no_section() -> None:
    with pytest.raises(MesofedError, match="'seed' is a value, not a section"):
        load_config(overrides=("seed=1", "seed.more=2"))


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(MesofedError) as error:
        load_config(overrides=("seed=-1", "bank.rank=0", "nonsense=1"))
    assert all(name in str(error.value) for name in ("seed", "bank.rank", "nonsense"))


def test_what_came_is_said_once_and_never_the_whole_configuration() -> None:
    for assignment in (
        'methods=["oppo"]',
        "corpus.source=jsonl",
        "seed=-1",
        "engine=locl",
        "sed=1",
    ):
        with pytest.raises(MesofedError) as error:
            load_config(overrides=(assignment,))
        assert str(error.value).count("; got") <= 1
        assert "{" not in str(error.value)
        assert str(error.value).count("did you mean") <= 1


def settings_of(kind: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield before + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{before}{name}.")


@pytest.mark.parametrize("kind", [RunConfig, ComparisonConfig])
def test_no_word_of_pydantic_is_shown_whatever_is_wrong(kind: type[ExperimentConfig]) -> None:
    said = []
    for name in settings_of(kind):
        for value in ("-1", "1.5", "nan", "true", "[]", "[1]", '["x"]', "{x = 1}", "word"):
            with contextlib.suppress(MesofedError):
                read_settings(kind, None, (f"{name}={value}",))
                continue
            with pytest.raises(MesofedError) as error:
                read_settings(kind, None, (f"{name}={value}",))
            said.append(str(error.value))
    assert len(said) > 300
    for text in said:
        assert not re.search("Input|should|valid [a-z]|[Vv]alue error|greater|less than", text), (
            text
        )


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match=r"config .*absent\.toml: No such file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(MesofedError, match="Cannot read the config"):
        load_config(tmp_path)
    with pytest.raises(MesofedError, match=r"Expected TOML in .*run\.toml"):
        load_config(write(tmp_path, "seed: 3"))
    (tmp_path / "run.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(MesofedError, match=r"Expected TOML in .*run\.toml"):
        load_config(tmp_path / "run.toml")


def test_the_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().bank.rank = 3


def test_paths_become_absolute_so_that_a_run_may_be_resumed_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(
        overrides=("corpus.source=lamp", "corpus.path=data/q.json", "corpus.outputs=o.json")
    )
    assert config.corpus.path == str(tmp_path / "data/q.json")
    assert config.corpus.outputs == str(tmp_path / "o.json")
    assert load_config().corpus.path == ""


CHOICES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "threads": st.integers(0, 64),
        "methods": st.lists(st.sampled_from(list(METHODS)), min_size=1, max_size=4),
        "adapt": st.lists(st.text(max_size=8), max_size=3),
        "base": st.fixed_dictionaries(
            {
                "name": st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
                "format": st.sampled_from(["fp32", "bf16", "int8", "nf4"]),
            }
        ),
        "private": st.fixed_dictionaries(
            {
                "learning_rate": st.floats(0, 10, exclude_min=True),
                "stack_rank": st.integers(1, 4),
                "warmup": st.floats(0, 1, exclude_max=True),
            }
        ),
    }
)


@settings(deadline=None)
@given(CHOICES)
def test_what_is_dumped_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, choices: dict[str, Any]
) -> None:
    config = RunConfig.model_validate(choices)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_bytes(dump_config(config).encode())
    assert load_config(path) == config


def test_a_private_bank_and_items_in_several_samples_exclude_each_other() -> None:
    load_config(None, ("bank.dp_epsilon=8", "retrieval.items=0"))
    with pytest.raises(MesofedError, match="stands in later samples too"):
        load_config(None, ("bank.dp_epsilon=8", "retrieval.items=1"))
