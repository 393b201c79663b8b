"""Files that are either the old or the new version, never half of one, even after a kill -9."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from shared.errors import MesofedError


def write_bytes(path: Path, data: bytes | bytearray, mode: int = 0o666) -> None:
    """Write a file as a whole; its folder is made if missing.

    The bytes go to a hidden ``.{name}.{random}.tmp`` in the same folder, reach the disk, and take
    the final name in one step. A kill leaves at most such a temporary file behind.

    Parameters
    ----------
    mode : int
        Rights of the file, less what the process's umask takes away.

    Raises
    ------
    MesofedError
        If the file cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(temporary, flags, mode), "wb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise MesofedError(
            f"Cannot write {path}: {error.strerror or error}. "
            "Make room or choose a folder that you may write to."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file as a whole; line ends stay as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON as a whole, indented, with a final newline.

    Raises
    ------
    ValueError
        If the value holds a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2)
    write_text(path, text + "\n")
