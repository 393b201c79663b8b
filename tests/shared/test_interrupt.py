"""Ctrl-C at any moment: one line and 130, even where an exception would be swallowed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.interrupt import stopping_at_once, stopping_in_order

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


def test_while_importing_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(SWALLOWS, encoding="utf-8")
    script = IMPORTING.format(folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "Stopped.")


def test_in_order_ctrl_c_is_an_exception_and_the_former_way_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping_at_once():
        at_once = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), stopping_in_order():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is at_once
    assert signal.getsignal(signal.SIGINT) is before
