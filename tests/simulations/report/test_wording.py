"""Sentences claim what the tests carry, and no more."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.byte_size import byte_size
from simulations.report.read import read_run
from simulations.report.summary import summarise
from simulations.report.wording import (
    NARROW,
    answered_sentence,
    decimal,
    duration,
    headline,
    next_step,
    signed,
    traffic_sentence,
)

Writer = Callable[..., Path]


def test_a_clear_gain_is_told_with_its_interval(fake_run: Writer) -> None:
    summary = summarise(fake_run(skill={"population": 0.1, "meso": 1.0}))
    row = summary.row("meso", "tagging")
    assert row is not None
    assert row.gain is not None
    text = headline(summary)
    low, high = row.gain.estimate.low, row.gain.estimate.high
    assert low is not None
    assert high is not None
    assert text.startswith(
        f"meso raises tagging accuracy from {row.gain.reference:.2f} to {row.estimate.mean:.2f} "
        f"(95{NARROW}% interval of the gain: +{low:.2f} to +{high:.2f}), lowers rating MAE from "
    )
    assert text.endswith("with 115 kB kept private per user.")


def test_what_is_not_clear_is_no_claim(fake_run: Writer) -> None:
    summary = summarise(fake_run(skill={"population": 0.5, "meso": 0.5}))
    for row in summary.rows:
        if row.method == "meso":
            assert row.gain is not None
            assert not row.gain.clear
    text = headline(summary)
    assert text.count("no clear difference") == 3
    assert not any(verb in text for verb in ("raises", "lowers", "worsens"))


def test_an_interval_without_zero_that_is_not_clear_is_explained(fake_run: Writer) -> None:
    # Six users: even if all of them gain, 2 / 64 does not survive the correction for 15 rows.
    summary = summarise(fake_run(devices=6, skill={"population": 0.0, "meso": 1.0}))
    row = summary.row("meso", "headline")
    assert row is not None
    assert row.gain is not None
    assert row.gain.p == 2 / 64
    assert row.gain.estimate.low is not None
    assert row.gain.estimate.low > 0
    text = headline(summary)
    assert "raises" not in text
    assert f"sign-flip test, Holm-corrected: p = {row.gain.adjusted_p:.3f}" in text


def test_a_loss_is_told_too(fake_run: Writer) -> None:
    text = headline(summarise(fake_run(skill={"population": 1.0, "meso": 0.0})))
    assert "worsens tagging accuracy" in text
    assert "worsens rating MAE" in text


def test_few_users_carry_no_claim(fake_run: Writer) -> None:
    text = headline(summarise(fake_run(devices=3, skill={"population": 0.0, "meso": 1.0})))
    assert "raises" not in text
    assert "3 users, too few to tell" in text


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        (("base", "population"), "No personalised method was run"),
        (("base", "meso"), "population was not run"),
    ],
)
def test_missing_methods_are_said(fake_run: Writer, methods: tuple[str, ...], says: str) -> None:
    folder = fake_run(methods=methods)
    assert says in headline(summarise(folder))
    assert "method" in next_step(read_run(folder), summarise(folder))


def from_file(folder: Path, left: int, most: int) -> str:
    """Make a run one of an own corpus, with people left over and so many queries at most."""
    record = json.loads((folder / "run.json").read_text())
    record["paths"]["corpus"] = "people.jsonl"
    (folder / "run.json").write_text(json.dumps(record))
    corpus = json.loads((folder / "corpus.json").read_text())
    corpus["users"] += left
    (folder / "corpus.json").write_text(json.dumps(corpus))
    (folder / "config.toml").write_text(f"[corpus]\nmax_queries = {most}\n")
    return next_step(read_run(folder), summarise(folder))


def test_the_next_step_is_one_that_the_corpus_allows(fake_run: Writer) -> None:
    even = {"population": 0.5, "meso": 0.5}
    folder = fake_run(methods=("population", "meso"), skill=even)
    step = next_step(read_run(folder), summarise(folder))  # the built-in corpus
    assert "device_users=N`, more queries each, `--set corpus.max_queries=N` or another" in step
    asked = len(read_run(folder).devices[0].methods["meso"].answers)
    step = from_file(folder, 0, asked)
    assert "with more queries each, `--set corpus.max_queries=N` or another seed" in step
    step = from_file(folder, 0, asked + 1)
    assert "with another seed, `--set seed=N`." in step
    assert "with more device users, `--set corpus.device_users=N` or" in from_file(
        folder, 1, asked + 1
    )


def test_too_few_people_are_told_to_be(fake_run: Writer) -> None:
    folder = fake_run(devices=3, methods=("population", "meso"))
    assert "more device users, `--set corpus.device_users=N`: with fewer than 6" in next_step(
        read_run(folder), summarise(folder)
    )
    assert "more people in the corpus: with fewer than 6" in from_file(folder, 0, 1)


def test_traffic_in_words(fake_run: Writer) -> None:
    words = traffic_sentence(read_run(fake_run()))
    assert words.startswith("Each device sent 132 bytes and received 2.4 MB;")


def test_numbers_in_words() -> None:
    sizes = [byte_size(n) for n in (0, 1, 132, 999, 1000, 9_949, 15_360, 999_999, 2_431_744)]
    assert sizes == [
        *("0 bytes", "1 byte", "132 bytes", "999 bytes", "1.0 kB", "9.9 kB", "15 kB"),
        *("1.0 MB", "2.4 MB"),
    ]
    assert [duration(s) for s in (0.84, 41.6, 200, 7500)] == [
        *("0.8 s", "42 s", "3 min 20 s", "2 h 05 min"),
    ]
    assert [signed(v) for v in (0.126, -0.126, 0.001, -0.001)] == ["+0.13", "−0.13", "0.00", "0.00"]
    assert decimal(-0.0001) == "0.000"


def test_refusals_have_numbers_and_a_run_without_noise_claims_no_epsilon(fake_run: Writer) -> None:
    folder = fake_run(devices=3)
    file = folder / "statistics/r1.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    reasons = {5: "no answer", 6: "malformed statistics", 7: "no answer"}
    refused = [{"node": node, "reason": reason} for node, reason in reasons.items()]
    file.write_text(json.dumps({**record, "asked": 6, "refused": refused}), encoding="utf-8")
    assert answered_sentence(read_run(folder)) == (
        "3 of 6 devices answered; refused: 1 x malformed statistics and 2 x no answer. "
        "Privacy: no noise was added (mode off), so no epsilon holds."
    )


@pytest.mark.parametrize("came", ["taken", "lost", "implausible"])
def test_each_round_and_the_run_say_what_they_cost_and_what_became_of_a_sum(
    fake_run: Writer, came: str
) -> None:
    folder = fake_run(devices=3)
    record = json.loads((folder / "statistics/r1.json").read_text(encoding="utf-8"))
    for release, total in ((1, 3.0), (2, 4.5)):
        privacy = {
            "mode": "central",
            "delta": 1e-5,
            "epsilon_of_round": 3.0,
            "epsilon_in_total": total,
            "epsilon_of_budget": 8.0,
        }
        said = {
            **record,
            "refused": [],
            "privacy": privacy,
            "sum": came if release == 2 else "taken",
        }
        (folder / f"statistics/r{release}.json").write_text(json.dumps(said), encoding="utf-8")
    text = answered_sentence(read_run(folder))
    assert "Privacy of round 1, mode central: epsilon 3 at delta 1e-05." in text
    assert "Privacy of round 2, mode central: epsilon 3 at delta 1e-05" in text
    assert ("its secure sum was" in text) == (came != "taken")
    if came != "taken":
        assert f"delta 1e-05; its secure sum was {came}" in text
    assert text.endswith(
        "Privacy in total, one person over all rounds: epsilon 4.5 of 8 at delta 1e-05."
    )
