"""Ctrl-C or SIGTERM at any moment: one line and 130, even where exceptions are swallowed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.interrupt import SIGNALS, stopping_at_once, stopping_in_order

IMPORTING = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import shared.cli

def importing():
    Path({folder!r}, "ready").touch()
    import swallows

shared.cli.root = importing
shared.cli.main()
"""
SWALLOWS = """
import time
for _ in range(100):
    try:
        time.sleep(0.1)
    except BaseException as error:
        raise ImportError("half a library") from error
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_while_importing_a_signal_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "swallows.py").write_text(SWALLOWS, encoding="utf-8")
    script = IMPORTING.format(folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "Stopped.")


@pytest.mark.parametrize("number", SIGNALS)
def test_in_order_a_signal_is_an_exception_and_the_former_way_comes_back(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with stopping_at_once():
        at_once = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt), stopping_in_order():
            signal.raise_signal(number)
        assert signal.getsignal(number) is at_once
    assert signal.getsignal(number) is before
