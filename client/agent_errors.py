"""What went wrong on a device, kept in its vault: it may hold private texts and never leaves."""

import contextlib
import traceback
from datetime import UTC, datetime

from client.journal import Journal
from client.vault import Vault

ERRORS = "errors"
_MOST_BYTES = 1 << 20


def error_journal(vault: Vault) -> Journal:
    """Return the record of what went wrong; sealed like the rest."""
    return Journal(
        vault.folder / ERRORS,
        vault.seal,
        "Remove the file: it holds what went wrong and nothing else, and is begun anew.",
    )


def log_error(vault: Vault, request: str, error: BaseException) -> None:
    """Record what went wrong; a record that cannot be written changes nothing."""
    journal = error_journal(vault)
    with contextlib.suppress(Exception):
        if journal.path.exists() and journal.path.stat().st_size > _MOST_BYTES:
            journal.path.unlink()
        journal.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "request": request,
                "error": "".join(traceback.format_exception(error))[-20_000:],
            }
        )
