"""A made-up run directory: plausible files of a run, without a model or a federation."""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

METHODS = ("base", "population", "oppu", "proper-folded", "mta-exact", "meso")
TASKS = ("tagging", "rating", "headline")
LABELS = ("triumph", "lesson", "comedy", "drama", "gear", "dream", "secret", "routine")
WORDS = [
    "why",
    "the",
    "old",
    "bridge",
    "still",
    "makes",
    "every",
    "sunday",
    "walk",
    "a",
    "small",
    "quiet",
    "adventure",
]
SKILL = {
    "base": 0.1,
    "population": 0.45,
    "oppu": 0.5,
    "proper-folded": 0.62,
    "mta-exact": 0.6,
    "meso": 0.8,
}
PRIVATE = {"oppu": 460_800, "proper-folded": 460_800, "mta-exact": 92_160, "meso": 115_200}

Writer = Callable[..., Path]


def _answer(rng: random.Random, task: str, skill: float, number: int) -> dict[str, Any]:
    right = rng.random() < skill
    if task == "tagging":
        gold = rng.choice(LABELS)
        prediction = gold if right else rng.choice(LABELS)
    elif task == "rating":
        gold = str(rng.randint(1, 5))
        prediction = gold if right else str(rng.randint(1, 5))
    else:
        words = rng.sample(WORDS, 6)
        keep = [w if rng.random() < skill else "thing" for w in words]
        gold, prediction = " ".join(words), " ".join(keep)
    return {
        "query_id": f"{task}-{number}",
        "task": task,
        "prediction": prediction,
        "gold": gold,
        "nll": round(2.2 - 1.5 * skill + 0.2 * rng.random(), 4),
    }


def _curve(rng: random.Random, steps: int, start: float, end: float) -> list[list[float]]:
    return [
        [s, end + (start - end) * math.exp(-4 * s / steps) + 0.12 * (rng.random() - 0.5)]
        for s in range(1, steps + 1)
    ]


def _peaked(rng: random.Random, width: int, peak: int) -> list[float]:
    raw = [rng.random() * 0.3 + (2.0 if place == peak else 0.0) for place in range(width)]
    return [round(value / sum(raw), 4) for value in raw]


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_fake_run(
    folder: Path,
    *,
    tasks: Sequence[str] = TASKS,
    methods: Sequence[str] = METHODS,
    devices: int = 12,
    queries: int = 4,
    groups: int | None = 4,
    training: bool = True,
    statistics: bool = True,
    user: Callable[[int], str] = lambda number: f"walker-{number:03d}",
    skill: dict[str, float] | None = None,
    seed: int = 7,
) -> Path:
    """Write the files that a run leaves behind; the same arguments give the same bytes."""
    rng = random.Random(seed)
    skills = SKILL | (skill or {})
    users = [user(number) for number in range(devices)]
    server = [f"server-{number}" for number in range(24)]
    known = {name: number % groups for number, name in enumerate(server)} if groups else None
    _write(
        folder / "run.json",
        {
            "mesofed": "0.1.0",
            "command": ["mesofed", "simulate", "--set", "base.name=smollm2"],
            "python": "3.11.9",
            "platform": "Linux-6.1 x86_64",
            "cores": 2,
            "packages": {"torch": "2.13.0", "flwr": "1.41.0", "transformers": "5.1.0"},
            "git_commit": "4f2a9c1d0b7e",
            "started": "2026-11-23T09:14:02+00:00",
            "seed": seed,
            "base": {"name": "smollm2", "format": "bf16", "fingerprint": "9c41" * 16},
            "paths": {"run": str(folder)},
        },
    )
    (folder / "config.toml").write_text('seed = 7\n\n[corpus]\nsource = "synthetic"\n')
    _write(
        folder / "corpus.json",
        {
            "origin": "synthetic corpus, seed 7",
            "users": len(users) + len(server),
            "server_users": server,
            "device_users": users,
            "skipped": [
                {"where": "users.jsonl:14", "reason": "no profile items"},
                {"where": "users.jsonl:31", "reason": "no profile items"},
            ],
            "groups": known,
        },
    )
    if training:
        stage = {"seconds": 61.5, "tokens": 20_480}
        curves = {"population": _curve(rng, 60, 3.1, 1.6)}
        _write(
            folder / "training/r1/population.json",
            {"stage": "population", **stage, "curves": curves},
        )
        steps = range(1, 49, 4)
        _write(
            folder / "training/r1/experts.json",
            {
                "stage": "experts",
                **stage,
                "curves": {"experts": _curve(rng, 48, 1.7, 1.2)},
                "router": [
                    {
                        "step": step,
                        "balance": 1.02,
                        "mean_gates": [0.25 + 0.004 * step, 0.25, 0.27, 0.23 - 0.004 * step],
                        "gate_entropy": 0.95 - 0.012 * step,
                    }
                    for step in steps
                ],
                "gates": {
                    name: _peaked(rng, 4, number % (groups or 4))
                    for number, name in enumerate(server)
                },
                "groups": known,
            },
        )
        _write(
            folder / "training/r1/bank.json",
            {
                "stage": "bank",
                **stage,
                "curves": {name: _curve(rng, 24, 1.6, 0.9) for name in server[:8]},
            },
        )
    for number, name in enumerate(users):
        own = rng.randint(3, 16)
        router = {
            "release": 1,
            "expert-weights": _peaked(rng, 4, number % (groups or 4)),
            "anchor-weights": _peaked(rng, 8, number % 8),
            "best-similarity": round(0.4 + 0.5 * rng.random(), 4),
            "entropy": round(0.4 + 0.2 * rng.random(), 4),
        }
        results = {}
        for method in methods:
            results[method] = {
                "private_parameters": PRIVATE.get(method, 0) // 4,
                "private_bytes": PRIVATE.get(method, 0),
                "seconds": 2.5 if method in PRIVATE else 0.0,
                "tokens": 900 if method in PRIVATE else 0,
                "curve": _curve(rng, 8 + number % 3, 1.5, 0.7) if method in PRIVATE else [],
                "queries": [
                    _answer(rng, task, min(1.0, skills[method] * (0.8 + 0.03 * own)), k)
                    for task in tasks
                    for k in range(queries)
                ],
                "scores": {},
            }
        _write(
            folder / f"results/{number:04d}.json",
            {
                "user_id": name,
                "group": number % groups if groups else None,
                "history": own,
                "release": 1,
                "statistics": router if statistics else None,
                "methods": results,
            },
        )
    if statistics:
        _write(
            folder / "statistics/r1.json",
            {
                "asked": devices + 1,
                "answered": devices,
                "refused": [{"node": 99, "reason": "malformed statistics"}],
                "devices": [
                    {"node": 1000 + n, "bytes_down": 2_431_744, "bytes_up": 132, "statistics": {}}
                    for n in range(devices)
                ],
                "mean": {"expert_weights": [0.25] * 4, "anchor_weights": [0.125] * 8},
            },
        )
    return folder


@pytest.fixture
def fake_run(tmp_path: Path) -> Writer:
    """Return a function that writes a run directory and gives its path."""
    return lambda **changes: write_fake_run(tmp_path / "run", **changes)
