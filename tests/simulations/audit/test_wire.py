"""What the audit takes for the server's side, and what it hears of logs."""

import logging
from pathlib import Path

from simulations.audit.wire import logs_kept, server_files


def test_every_file_but_the_devices_is_the_server_s(tmp_path: Path) -> None:
    for name in ("statistics/r1.json", ".hidden", "keys/release.pem", "vaults.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(f"content of {name}".encode())
    for name in ("vaults/0000/person.jsonl", "vaults/0000.errors.log", "pool/abc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"the device's own")
    found = server_files(tmp_path)
    assert len(found) == 4
    assert b"statistics/r1.json\ncontent of statistics/r1.json" in found
    assert not any(b"own" in data for data in found)


def test_logs_of_any_library_are_kept_with_the_texts_of_exceptions() -> None:
    with logs_kept() as records:
        logging.getLogger("some.library").error("it broke: %s", "secret one")
        try:
            raise ValueError("secret two")
        except ValueError:
            logging.getLogger("flwr").exception("caught")
    logging.getLogger("flwr").error("afterwards")
    text = "\n".join(records.lines)
    assert "secret one" in text
    assert "ValueError: secret two" in text
    assert "afterwards" not in text
