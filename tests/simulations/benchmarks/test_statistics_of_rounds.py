"""Rounds in turn, ratios round by round, bars, and the check that comes before any timing."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.errors import MesofedError
from simulations.benchmarks.interleave import interleave
from simulations.benchmarks.measurement import (
    Bar,
    Figure,
    Finding,
    checked,
    ratios,
    without_bars,
)


def test_sides_take_turns() -> None:
    calls: list[str] = []
    ends: list[int] = []
    seconds = interleave(
        {name: lambda name=name: calls.append(name) for name in "AB"},
        3,
        lambda: ends.append(len(calls)),
        warm=1,
    )
    assert "".join(calls) == "AB" + "AB" * 3
    assert ends == [4, 6, 8]
    assert {name: len(values) for name, values in seconds.items()} == {"A": 3, "B": 3}


def test_a_side_runs_inside_its_context_which_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("simulations.benchmarks.interleave.time.process_time", lambda: now)
    inside = False

    @contextmanager
    def slow() -> Iterator[None]:
        nonlocal now, inside
        now, inside = now + 100, True
        yield
        now, inside = now + 100, False

    def side() -> None:
        nonlocal now
        assert inside
        now += 6

    assert interleave({"A": side}, 2, repeat=3, within={"A": slow})["A"] == (6.0, 6.0)


def test_a_side_that_fails_leaves_the_garbage_collector_on() -> None:
    import gc

    with pytest.raises(ZeroDivisionError):
        interleave({"A": lambda: 1 / 0}, 1, warm=0)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_ratios_are_taken_round_by_round() -> None:
    # In the second round the whole machine was slow; that must not show.
    assert ratios((4.0, 40.0, 5.0), (2.0, 20.0, 1.0)) == (2.0, 2.0, 5.0)


@pytest.mark.parametrize(
    ("values", "bar", "met"),
    [
        ((1.0, 4.0, 9.0), Bar(4.0, at_least=True), True),
        ((1.0, 3.9, 9.0), Bar(4.0, at_least=True), False),
        ((1.0, 1.3, 9.0), Bar(1.3, at_least=False), True),
        ((1.0, 1.31, 9.0), Bar(1.3, at_least=False), False),
        ((0.0,), Bar(0.0, at_least=False), True),
        ((1e-9,), Bar(0.0, at_least=False), False),
        ((1.0,), None, None),
    ],
)
def test_a_bar_is_held_against_the_median(
    values: tuple[float, ...], bar: Bar | None, met: bool | None
) -> None:
    figure = Figure("what", "peer", values, bar)
    assert (figure.low, figure.high) == (min(values), max(values))
    assert figure.met is met


def test_other_models_keep_the_bars_of_exactness_alone() -> None:
    bar = Bar(1.0, at_least=False)
    finding = Finding(
        (
            Figure("speed", "peer", (2.0,), bar),
            Figure("sameness", "alone", (0.0,), bar, unit="difference"),
        )
    )
    assert [figure.bar for figure in without_bars(finding).figures] == [None, bar]


@pytest.mark.parametrize("difference", [1e-3, math.inf, math.nan])
def test_sides_that_differ_stop_the_benchmark(difference: float) -> None:
    with pytest.raises(MesofedError, match="gradients to agree within 1e-04"):
        checked("gradients", difference, 1e-4)
    assert checked("gradients", 1e-5, 1e-4).value == 1e-5
