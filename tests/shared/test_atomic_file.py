"""A file is the old or the new one, whatever happens while it is written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.atomic_file import write_bytes, write_json, write_text
from shared.errors import MesofedError


def test_content_arrives_in_a_new_folder_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_bytes(path, b"\x00one\r\n")
    write_bytes(path, b"\x00two\r\n")
    assert path.read_bytes() == b"\x00two\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_text_keeps_its_line_ends_and_letters(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "é\r\n\u2028x\n")
    assert (tmp_path / "t").read_bytes() == "é\r\n\u2028x\n".encode()


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_json(path, {"loss": [1.5, None], "name": "café"})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"loss": [1.5, None], "name": "café"}


def test_failure_keeps_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(MesofedError, match="No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"a file, not a folder")
    with pytest.raises(MesofedError, match="Cannot write"):
        write_bytes(tmp_path / "taken" / "file", b"x")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    script = (
        "import os, signal, sys, pathlib\n"
        "from shared.atomic_file import write_bytes\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_bytes(pathlib.Path(sys.argv[1]), b'new' * 100000)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
