"""Progress: stages report, the command decides where it is shown."""

import io
import re
import threading

import pytest
from rich.console import Console

from shared.progress import Display, shown, stage, tokens_done, under_way


def plain() -> Console:
    """Return a console that is no terminal."""
    return Console(file=io.StringIO(), width=120, force_terminal=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_stages_are_silent_when_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    tokens_done(3)
    with stage("population", 2, "steps") as current:
        current.advance(1, tokens=10)
        tokens_done(5)
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_each_stage_ends_with_one_line() -> None:
    console = plain()
    with shown(console) as display:
        with stage("population", 2, "steps") as current:
            current.advance(2)
            assert written(console) == ""
        with stage("bank", 1, "anchors"):
            pass
    lines = written(console).splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"✓ population +\d+\.\d s", lines[0])
    assert re.fullmatch(r"✓ bank +\d+\.\d s", lines[1])
    assert set(display.seconds) == {"population", "bank"}


def test_without_a_terminal_a_long_stage_shows_that_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("shared.progress.time.monotonic", lambda: now)
    console = plain()
    with shown(console), stage("train", 400, "tokens") as current:
        current.advance(100)
        now += 61
        current.advance(10)
        now += 30
        current.advance(10)
        now += 31
        current.advance(120)
    assert written(console).splitlines() == [
        "  train                       61.0 s, 28% done",
        "  train                      122.0 s, 60% done",
        "✓ train                      122.0 s",
    ]


def test_seconds_of_stages_of_one_name_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr("shared.progress.time.monotonic", lambda: now)
    with shown(plain()) as display:
        for seconds in (1.5, 2.0):
            number = display.begin("round", 1, "devices")
            now += seconds
            display.end(number, "round")
        assert display.seconds == {"round": 3.5}


def state(display: Display) -> list[tuple[float, float | None, int]]:
    return [(t.completed, t.total, t.fields["tokens"]) for t in display._progress.tasks]


def test_amounts_and_tokens_go_to_the_stage() -> None:
    with shown(plain()) as display:
        with stage("bank", 8, "anchors") as current:
            current.advance(3, tokens=100)
            tokens_done(20)  # counts as tokens, not as anchors
            assert state(display) == [(3, 8, 120)]
        assert state(display) == [(8, 8, 120)]  # what is done is done


def test_tokens_move_a_stage_that_counts_tokens_and_the_innermost_one() -> None:
    with shown(plain()) as display, stage("devices", 2, "devices"):
        with stage("population", 50, "tokens"):
            tokens_done(20)
            assert state(display) == [(0, 2, 0), (20, 50, 20)]
        tokens_done(7)
        assert state(display) == [(0, 2, 7), (50, 50, 20)]


def test_work_under_way_shows_until_more_is_done() -> None:
    under_way(0.5)  # nothing runs: nothing to show
    with shown(plain()) as display, stage("devices", 4, "devices") as current:
        for _ in range(3):
            under_way(0.5)  # three of four devices are half done
        assert state(display) == [(1.5, 4, 0)]
        current.advance(1)  # one of them is done: no more than what was under way
        assert state(display) == [(1.5, 4, 0)]
        current.advance(1)
        assert state(display) == [(2, 4, 0)]


def test_a_stage_that_fails_is_not_done_and_no_longer_runs() -> None:
    console = plain()

    def fail() -> None:
        with stage("population", 50, "tokens"):
            raise KeyboardInterrupt

    with shown(console) as display:
        with pytest.raises(KeyboardInterrupt):
            fail()
        tokens_done(20)
        assert state(display) == [(0, 50, 0)]
    assert written(console) == ""
    assert display.seconds == {}


def test_a_terminal_shows_name_share_and_tokens_per_second() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with shown(console), stage("population", 4, "users") as current:
        current.advance(4, tokens=1000)
    assert "population" in written(console)
    assert "4/4 users" in written(console)
    assert "tok/s" in written(console)


def test_displays_nest_and_come_back() -> None:
    outer, inner = plain(), plain()
    with shown(outer):
        with shown(inner), stage("first", 1, "steps"):
            pass
        with stage("second", 1, "steps"):
            pass
    with stage("third", 1, "steps"):
        pass
    assert "first" in written(inner)
    assert "second" not in written(inner)
    assert "second" in written(outer)
    assert "first" not in written(outer)
    assert "third" not in written(outer)


def test_several_threads_may_advance_a_stage() -> None:
    with shown(plain()) as display, stage("devices", 400, "devices") as current:
        threads = [
            threading.Thread(target=lambda: [current.advance(1, tokens=2) for _ in range(100)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert state(display) == [(400, 400, 800)]


def test_a_stage_without_anything_to_do_ends() -> None:
    console = plain()
    with shown(console), stage("nothing", 0, "users"):
        pass
    assert "nothing" in written(console)
