"""The bytes of a file, unpacked if it is gzip: known by its first bytes, not by its name."""

import gzip
import io
import json
import zlib
from pathlib import Path

from shared.corpus.problems import Findings, shown

GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20


def read_plain(path: Path, findings: Findings) -> bytes:
    """Return a file's bytes; of a damaged gzip file, the bytes before the damage.

    A file that is missing, empty or damaged is a problem in ``findings``, never an exception.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        findings.problem(str(path), "a readable file", reason)
        return b""
    if raw.startswith(GZIP_MAGIC):
        return _unpack(path, raw, findings)
    if not raw.strip():
        findings.problem(str(path), "at least one user", "an empty file")
    return raw


def _unpack(path: Path, raw: bytes, findings: Findings) -> bytes:
    unpacked = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            while chunk := stream.read1(_CHUNK):
                unpacked.write(chunk)
    except (EOFError, OSError, zlib.error) as error:
        findings.problem(str(path), "a whole gzip file", f"a damaged one ({error})")
    else:
        if not unpacked.getvalue().strip():
            findings.problem(str(path), "at least one user", "an empty gzip file")
    return unpacked.getvalue()


def parse_json(data: bytes, where: str, findings: Findings) -> object:
    """Return the JSON value in UTF-8 bytes, or None with a problem in ``findings``."""
    try:
        value: object = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = shown(data[error.start : error.start + 1])
        findings.problem(where, "UTF-8 text", f"the byte {byte} at position {error.start}")
    except (ValueError, RecursionError) as error:
        start = data[:40].decode("utf-8", "replace")
        findings.problem(where, "JSON", f"{shown(start)} ({error})")
    else:
        if value is None:
            findings.problem(where, "a JSON object or list", "null")
        return value
    return None


def read_json(path: Path, findings: Findings) -> object:
    """Return the JSON value that a file holds, or None with a problem in ``findings``."""
    data = read_plain(path, findings)
    return parse_json(data, str(path), findings) if data.strip() else None
