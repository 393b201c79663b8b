"""What a device leaves outside of its vault: sockets, and the logs of the SuperNode beside them.

    NAME.sock               the agent listens here; a kill leaves it behind
    NAME.sock.errors.log    what went wrong in the SuperNode's processes, which know no vault
    VAULT.errors.log        the same of a device of a simulation, which has no socket

Where an agent has listened is kept in the vault, unsealed: a vault is erased without being opened.
"""

import contextlib
import json
import os
import socket
from pathlib import Path

from client.egress import log_beside
from client.lock import LOCK
from shared.atomic_file import write_bytes

SOCKETS = "sockets.json"


def socket_folders() -> tuple[Path, ...]:
    """Return the folders that sockets are put into where nobody names another, best first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folders = (Path.home() / ".mesofed" / "sockets",)
    return (Path(runtime) / "mesofed", *folders) if runtime else folders


def socket_name(vault: Path) -> str:
    """Return the name of a vault's socket where nobody names another."""
    return f"{vault.resolve().name}.sock"


def remember_socket(vault: Path, path: Path) -> None:
    """Keep in a vault that its agent listens there."""
    known = remembered_sockets(vault)
    if path not in known:
        names = [str(one) for one in (*known, path)]
        write_bytes(vault / SOCKETS, json.dumps(names, indent=1).encode(), mode=0o600)


def traces(vault: Path) -> list[Path]:
    """Return what lies outside of a vault and is of its device; nothing that others use."""
    sockets = [*remembered_sockets(vault), *(f / socket_name(vault) for f in socket_folders())]
    # Only a simulation's device logs beside its vault.
    logs = [] if (vault / LOCK).exists() else [log_beside(vault.resolve())]
    found = [path for path in sockets if is_left(path)]
    found += [path for path in (*map(log_beside, sockets), *logs) if path.is_file()]
    return list(dict.fromkeys(found))


def erase_traces(vault: Path) -> tuple[list[Path], list[str]]:
    """Remove what lies outside of a vault; return what is gone, and why anything is not."""
    gone, kept = [], []
    for path in traces(vault):
        try:
            path.unlink()
            gone.append(path)
        except OSError as error:
            kept.append(f"{path}: {error.strerror or error}")
    return gone, kept


def is_left(path: Path) -> bool:
    """Return whether a socket is there that nobody listens at, as a kill leaves it."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # it may be anybody's
            return False
    return False


def remembered_sockets(vault: Path) -> tuple[Path, ...]:
    """Return where a vault's agent has listened; of a damaged file, nothing."""
    with contextlib.suppress(OSError, ValueError):
        names = json.loads((vault / SOCKETS).read_bytes())
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(Path(name) for name in names if "\0" not in name)
    return ()
