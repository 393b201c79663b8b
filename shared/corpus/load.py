"""One way to a corpus, whatever its source; and a check of a file that tells all its problems."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.config import CorpusConfig
from shared.corpus.jsonl import read_jsonl
from shared.corpus.lamp import read_lamp
from shared.corpus.lamp_tasks import expected_tasks
from shared.corpus.plain_file import read_plain
from shared.corpus.problems import Findings, Problem, Skip, refusal
from shared.corpus.synthetic import SYNTHETIC_TASKS, synthetic_users
from shared.corpus.user import User
from shared.errors import MesofedError


@dataclass(frozen=True)
class Corpus:
    """People and where they come from.

    Attributes
    ----------
    users : tuple of User
        With different ids, each with at least one history item and one query.
    skipped : tuple of Skip
        What was left out, and why.
    origin : str
        The source in words, for the run's record.
    """

    users: tuple[User, ...]
    skipped: tuple[Skip, ...]
    origin: str


def load_corpus(config: CorpusConfig, seed: int) -> Corpus:
    """Load the corpus that the configuration names.

    Parameters
    ----------
    config : CorpusConfig
        Source, path and how to meet bad input.
    seed : int
        Decides the synthetic corpus; files do not depend on it.

    Raises
    ------
    MesofedError
        If the file has problems and ``bad_input`` is ``error``, or if no user is left.
    """
    if config.source == "synthetic":
        if config.task and config.task not in SYNTHETIC_TASKS:
            raise MesofedError(
                f"Expected corpus.task to be empty or one of {', '.join(SYNTHETIC_TASKS)} "
                f"for the synthetic corpus; got {config.task!r}."
            )
        tasks = (config.task,) if config.task else SYNTHETIC_TASKS
        count = config.server_users + config.device_users
        users = synthetic_users(count, config.groups, seed, tasks)
        return Corpus(users, (), f"synthetic: {config.groups} groups, seed {seed}")
    path = Path(config.path)
    findings = Findings()
    if config.source == "lamp":
        outputs = Path(config.outputs) if config.outputs else None
        users = read_lamp(path, outputs, config.task, findings)
    else:
        users = read_jsonl(path, config.task, findings)
    if findings.problems and (config.bad_input == "error" or not users):
        raise refusal(str(path), findings.problems, mendable=bool(users))
    left_out = (
        Skip(problem.where, f"expected {problem.expected}; got {problem.got}")
        for problem in findings.problems
    )
    return Corpus(users, (*findings.skipped, *left_out), f"{config.source}: {path}")


@dataclass(frozen=True)
class CheckReport:
    """What a corpus file holds and what is wrong with it.

    Attributes
    ----------
    path : str
        The file.
    source : str
        Its kind: ``lamp`` or ``jsonl``.
    users, items : int
        Usable users, and their history items.
    queries : dict
        Usable queries by task.
    history_length : tuple of int, float, int, or None
        Minimum, median and maximum items of a user; None without users.
    problems : tuple of Problem
        Bad input; the file is sound if there is none.
    skipped : tuple of Skip
        Harmless gaps that are left out in any case.
    """

    path: str
    source: str
    users: int
    items: int
    queries: dict[str, int]
    history_length: tuple[int, float, int] | None
    problems: tuple[Problem, ...]
    skipped: tuple[Skip, ...]


def check_file(path: Path, outputs: Path | None = None, task: str | None = None) -> CheckReport:
    """Read a corpus file to its end and report what it holds; problems do not stop it.

    Parameters
    ----------
    path : Path
        A JSONL file or LaMP questions file, told apart by the first character.
    outputs : Path, optional
        LaMP outputs file; by default the one beside the questions.
    task : str, optional
        The expected task under any of its names.

    Raises
    ------
    MesofedError
        If ``task`` is not a task's name.
    """
    expected_tasks(task or "")
    findings = Findings()
    # Whether the file reads at all is noted by the reader below, once.
    is_lamp = outputs is not None or read_plain(path, Findings()).lstrip()[:1] == b"["
    if is_lamp:
        users = read_lamp(path, outputs, task or "", findings)
    else:
        users = read_jsonl(path, task or "", findings)
    return _report(path, "lamp" if is_lamp else "jsonl", users, findings)


def _report(path: Path, source: str, users: Sequence[User], findings: Findings) -> CheckReport:
    lengths = [len(user.history) for user in users]
    return CheckReport(
        path=str(path),
        source=source,
        users=len(users),
        items=sum(lengths),
        queries=dict(Counter(query.task for user in users for query in user.queries)),
        history_length=(
            (min(lengths), statistics.median(lengths), max(lengths)) if lengths else None
        ),
        problems=tuple(findings.problems),
        skipped=tuple(findings.skipped),
    )
