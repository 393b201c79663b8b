"""`mesofed audit` from its arguments to table, JSON, page and exit code."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from simulations.audit import leaking_apps
from simulations.audit.cli import said
from simulations.audit.statistics_mechanism import EmpiricalEpsilon, Guarantee, StatisticsEpsilon
from simulations.audit.wording import accounted, proved

ARGUMENTS = [
    argument
    for setting in (
        "base.name=tiny",
        "base.format=fp32",
        "base.top_layers=2",
        "base.max_tokens=64",
        "threads=1",
        "corpus.server_users=8",
        "corpus.device_users=5",
        "corpus.max_history=8",
        "corpus.groups=2",
        "population.rank=2",
        "experts.rank=2",
        "bank.rank=2",
        "bank.anchors=3",
        "bank.min_history=3",
        "private.epochs=1",
    )
    for argument in ("--set", setting)
]


def widest(text: str) -> int:
    """Return the columns that a text takes, but for lines that are one long path."""
    return max(len(line) for line in text.splitlines() if " " in line.removeprefix("Page: "))


@pytest.fixture
def audit(mesofed: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def call(*more: object) -> Any:
        return mesofed("audit", *ARGUMENTS, "--out", tmp_path / "audit", *more)

    return call


def test_an_audit_says_what_it_found(audit: Callable[..., Any], tmp_path: Path) -> None:
    outcome = audit("--set", "bank.dp_epsilon=4")
    assert outcome.code == 0, outcome.text
    assert "No canary in the" in outcome.text
    assert "Their statistics carry no guarantee of differential privacy" in outcome.text
    assert widest(outcome.out) <= 100
    assert "Next: keep " in outcome.out

    found = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert found["passed"]
    assert found["failures"] == []
    assert [egress["federation"] for egress in found["egress"]] == [
        "mesofed",
        "uploads",
        "unguarded",
    ]
    assert [bool(egress["finds"]) for egress in found["egress"]] == [False, True, True]
    ours, uploads, unguarded = found["egress"]
    # A device holds seven texts and a LoRA, and what it computes: embedding and trained stack.
    # Uploads send the last three, errors the texts before there is an embedding or a stack.
    assert [sum(e["canaries"].values()) for e in found["egress"]] == [10 * ours["devices"], 20, 16]
    assert (ours["sent"], uploads["sent"], unguarded["sent"]) == (0, 6, 14)
    rows = re.findall(r"(\d+) +(\d+(?: of \d+ sent)?) +(none|all sent) +✓", outcome.out)
    assert rows == [
        (f"{10 * ours['devices']}", "0", "none"),
        ("20", "6 of 6 sent", "all sent"),
        ("16", "14 of 14 sent", "all sent"),
    ]
    plain, noised, summed = found["statistics"]
    assert (plain["accounted"], plain["passed"]) == (None, True)
    assert noised["passed"]
    assert noised["accounted"]["epsilon"] == pytest.approx(8.0, rel=1e-3)
    # One of five devices may be dishonest, and three are needed.
    assert summed["mechanism"] == "central: 2 honest shares in a sum of 3 of 5 devices"
    for attacked in (noised, summed):
        assert attacked["passed"]
        assert 0 < attacked["empirical"]["gaussian"] < attacked["accounted"]["epsilon"]
    assert {attack["target"] for attack in found["attacks"]} == {
        "router statistics",
        "meta-LoRA bank",
        "anchors' places",
        "population LoRA",
        "uploads of fedavg-lora",
    }
    asked = [a["target"] for a in found["attacks"] if a["question"] == "which group?"]
    assert asked == [
        "router statistics",
        "meta-LoRA bank",
        "anchors' places",
        "uploads of fedavg-lora",
    ]
    rows = [(attack["target"], attack["question"]) for attack in found["attacks"]]
    assert len(set(rows)) == len(rows)  # the chart names them so
    # Without noise, who knows a person's whole history knows the person's statistics.
    assert found["attacks"][0]["question"] == "whose history is it?"
    assert found["attacks"][0]["auc"] == 1.0
    assert [bank["epsilon"] for bank in found["price"]["banks"]] == [None, 8.0, 4.0, 1.0]
    assert len(found["bank_privacy"]["anchors"]) == found["price"]["anchors"]
    # What the price says of the configured budget is what the release's own log says.
    noise = [entry["noise_multiplier"] for entry in found["bank_privacy"]["anchors"].values()]
    assert found["price"]["banks"][2]["noise_multiplier"] == [min(noise), max(noise)]

    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", page)
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", page)
    assert "https://" not in page
    assert "<td>20</td><td>6 of 6 sent</td>" in page
    for attack in found["attacks"]:
        assert f"{attack['auc']:.2f}" in page
    assert "given all else that the release holds" in page
    for text in (outcome.text, page):
        shown = " ".join(text.split())
        assert "none: rounded to four decimals" in shown
        assert f"{noised['empirical']['gaussian']:.2f} for" in shown
        assert "at most 8" in shown
        assert f"{summed['empirical']['gaussian']:.2f} for" in shown

    again = audit()
    assert again.code == 1
    assert "holds an audit already" in again.text


@pytest.mark.parametrize("mode", ["local", "central"])
def test_an_audit_of_noised_statistics_says_what_the_server_sees(
    audit: Callable[..., Any], tmp_path: Path, mode: str
) -> None:
    outcome = audit("--set", f"privacy.mode={mode}")
    assert outcome.code == 0, outcome.text
    found = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    ours = found["egress"][0]
    assert found["passed"]
    assert ours["held_back"] == len(ours["faults"]) == (11 if mode == "local" else 20)
    assert (ours["never_run"], ours["honest_failed"], ours["finds"]) == ([], 0, [])
    seen, targets = found["seen"], [attack["target"] for attack in found["attacks"]]
    shown = [" ".join(text.split()) for text in (outcome.text, page)]
    assert (seen["several"], seen["untold"], seen["unheard"]) == (0, 0, 0)
    for text in shown:
        assert "This was read off the wire; every journal tells the same." in text
    if mode == "local":
        assert (seen["single"], seen["bare"], seen["sum"]) == (5, 0, None)
        assert targets.count("router statistics") >= 2
        assert all("the attacks are on what was sent, with the noise" in text for text in shown)
    else:
        assert (seen["single"], seen["bare"], seen["sum"]["devices"]) == (0, 0, 5)
        assert "router statistics" not in targets
        weights = ", ".join(f"{weight:.2f}" for weight in seen["sum"]["expert_weights"])
        for text in shown:
            assert "Router statistics of a single device: none to attack." in text
            assert f"Seen instead: mean expert weights {weights}, from the sum." in text
    assert widest(outcome.out) <= 100
    (step,) = re.findall(r"Next: .+:\n((?:.+\n)+)", outcome.out)
    program, *words = shlex.split(step.replace("\\\n", ""))
    assert program.endswith("mesofed")
    # Everything that was said of what to audit, and not the folder, which is taken.
    mode_said = ["--set", f"privacy.mode={mode}"]
    assert words == ["audit", *ARGUMENTS, *mode_said, "--set", "bank.dp_epsilon=8"]


def test_the_next_audit_is_of_the_same_file() -> None:
    assert said(Path("my runs/config.toml"), ["seed=2", "corpus.path=a b"]) == [
        "my runs/config.toml",
        "--set",
        "seed=2",
        "--set",
        "corpus.path=a b",
    ]
    assert said(None, []) == []


def open_door(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    return call_next(message, context)


@pytest.mark.slow
def test_an_audit_of_devices_that_leak_fails(
    audit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaking_apps, "egress_guard", open_door)
    outcome = audit()
    assert outcome.code == 1
    assert "Failed: canaries left the devices" in outcome.text
    assert "do not deploy" in outcome.text
    found = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert not found["passed"]
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "Failed: canaries left the devices" in page


def test_what_cannot_be_audited_is_refused(mesofed: Callable[..., Any], tmp_path: Path) -> None:
    for setting, text in (
        ("engine=ray", "Expected engine=local"),
        ("rounds.devices=3", "Expected engine=local"),
        ("corpus.device_users=2", "at least 4 people on the device's side"),
    ):
        outcome = mesofed(
            "audit", *ARGUMENTS, "--set", setting, "--out", tmp_path / setting.replace(".", "-")
        )
        assert outcome.code == 1
        assert text in outcome.text
        assert "Traceback" not in outcome.text


def test_a_guarantee_is_put_beside_what_the_attack_proves() -> None:
    empirical = EmpiricalEpsilon(2_000, 1e-5, 0.95, 30, 20, 1_000, 0.9, 1.7)
    statistics = StatisticsEpsilon("Gaussian", empirical, Guarantee(2.0, 1e-5, 3))
    assert not replace(statistics, accounted=Guarantee(1.6, 1e-5, 3)).passed
    assert accounted(statistics) == "at most 2 at delta 1e-05 over 3 rounds"
    assert proved(statistics) == "at least 0.90 for any mechanism, 1.70 for Gaussian noise"
    assert statistics.passed
