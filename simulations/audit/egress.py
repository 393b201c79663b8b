"""Egress: every byte that leaves the devices of three federations, searched for canaries.

mesofed     our apps, most of the devices with handlers that leak behind the egress guard
uploads     a contrast: devices send their user LoRAs, as federated averaging does
unguarded   a contrast: devices raise exceptions with private texts, and no guard is there
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.device import Device
from server.app import app as server_app
from shared.progress import stage
from simulations.audit.canaries import PLANTED_METHOD, Canary, learned, plant, really_there
from simulations.audit.federations import Ground, found, vault_of
from simulations.audit.leaking_apps import TRIED, guarded_app, unguarded_app, uploading_app
from simulations.audit.receiving_server import receiving_server
from simulations.audit.search import Find, Needles
from simulations.audit.wire import TappedGrid, logs_kept, server_files
from simulations.local_grid import run_on

HONEST = 3
"""Devices of our federation that have no faulty handlers."""
CONTRAST_DEVICES = 2
TRAINED_METHOD = "meso"
EXPECTED = {
    "uploads": frozenset({"user LoRA", f"trained {TRAINED_METHOD}", "embedding"}),
    "unguarded": frozenset(
        {"history text", "target", "item id", "user id", "query", "gold", "file name"}
    ),
}
"""What has to be found in each contrast."""


@dataclass(frozen=True)
class Egress:
    """What a search has found in what left the devices of one federation.

    Attributes
    ----------
    federation : str
    devices : int
    faults : tuple of str
        What handlers behind the guard tried, one a device.
    held_back : int
        Devices whose own log says that the guard held something back.
    replies : int
        Messages that left the devices.
    searched : dict of str to int
        Bytes by source.
    canaries : dict of str to int
        Canaries searched for, by kind.
    windows : int
        Parts of them that were looked up.
    finds : tuple of Find
    """

    federation: str
    devices: int
    faults: tuple[str, ...]
    held_back: int
    replies: int
    searched: dict[str, int]
    canaries: dict[str, int]
    windows: int
    finds: tuple[Find, ...]

    @property
    def contrast(self) -> bool:
        """Whether canaries have to be found here."""
        return self.federation in EXPECTED

    @property
    def missed(self) -> frozenset[str]:
        """Kinds of canary that a contrast let out and the search did not find."""
        expected = EXPECTED.get(self.federation, frozenset())
        return expected - {find.kind for find in self.finds}

    @property
    def passed(self) -> bool:
        """Whether nothing was found and every fault was tried; in a contrast, all was found."""
        if self.contrast:
            return not self.missed
        return not self.finds and self.held_back == len(self.faults)


def measure_egress(ground: Ground) -> tuple[Egress, ...]:
    """Run the federations and search what leaves them.

    Raises
    ------
    RuntimeError
        If a canary is not in the vault that it was planted in.
    """
    careless = receiving_server()
    faults = dict(enumerate(TRIED, start=HONEST))
    return (
        _searched(ground, "mesofed", guarded_app(faults), server_app, HONEST + len(faults), faults),
        _searched(ground, "uploads", uploading_app(), careless, CONTRAST_DEVICES),
        _searched(ground, "unguarded", unguarded_app(), careless, CONTRAST_DEVICES),
    )


def _searched(
    ground: Ground,
    name: str,
    client_app: ClientApp,
    server: ServerApp,
    devices: int,
    faults: Mapping[int, tuple[str, str]] | None = None,
) -> Egress:
    run = found(ground, f"egress-{name}", (PLANTED_METHOD, TRAINED_METHOD), devices)
    planted = [canary for device in range(devices) for canary in _moved_in(ground, run, device)]
    grid = TappedGrid(client_app, devices, run)
    with logs_kept() as records:
        run_on(grid, server, run)
    own = [
        canary
        for device in range(devices)
        for canary in learned(vault_of(ground, run, device), device)
    ]
    logs = ["\n".join(records.lines).encode("utf-8", "backslashreplace")]
    left = {"messages": grid.left, "logs": logs, "files": server_files(run)}
    needles = Needles([*planted, *own])
    return Egress(
        federation=name,
        devices=devices,
        faults=tuple(f"{fault} ({request})" for request, fault in (faults or {}).values()),
        held_back=len(list((run / "vaults").glob("*.errors.log"))),
        replies=len(grid.left),
        searched={source: sum(map(len, blobs)) for source, blobs in left.items()},
        canaries=dict(Counter(canary.kind for canary in (*planted, *own))),
        windows=needles.count,
        finds=_finds(needles, name, left),
    )


def _moved_in(ground: Ground, run: Path, device: int) -> tuple[Canary, ...]:
    vault = vault_of(ground, run, device)
    person = ground.devices[device % len(ground.devices)].given
    config, methods = ground.config, (PLANTED_METHOD, TRAINED_METHOD)
    home = Device(ground.base, vault, methods, config.private, config.seed)
    canaries = plant(home, person, device, rounds=1)
    if not really_there(vault, canaries):
        raise RuntimeError(f"a canary is not in {vault.folder}, where it was planted")
    return canaries


def _finds(needles: Needles, name: str, left: Mapping[str, Sequence[bytes]]) -> tuple[Find, ...]:
    """Search each blob by itself; finds of the same thing in several are added up."""
    windows: Counter[tuple[str, int, str, str, str]] = Counter()
    blobs = [(source, data) for source, group in left.items() for data in group]
    with stage(f"search {name}", sum(len(data) for _, data in blobs), "bytes") as progress:
        for source, data in blobs:
            for find in needles.search(source, data):
                key = (find.source, find.device, find.kind, find.form, find.view)
                windows[key] += find.windows
            progress.advance(len(data))
    return tuple(Find(*key, count) for key, count in sorted(windows.items()))
