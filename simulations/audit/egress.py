"""Egress: every byte that leaves the devices of three federations, searched for canaries.

mesofed     our apps, most of the devices with handlers that leak behind the egress guard
uploads     a contrast: devices send the user LoRAs that ought to stay
unguarded   a contrast: devices raise exceptions with private texts, and no guard is there
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.device import Device
from server.app import app as server_app
from shared.progress import stage
from shared.secure_aggregation.graph import threshold_of
from shared.secure_aggregation.messages import MASKED, SHARES, UNMASK
from shared.wire import MESSAGES
from simulations.audit.canaries import PLANTED_METHOD, Canary, learned, plant, really_there
from simulations.audit.federations import Ground, found, vault_folder_of, vault_of
from simulations.audit.leaking_apps import (
    Tried,
    guarded_app,
    tried,
    unguarded_app,
    uploading_app,
)
from simulations.audit.receiving_server import receiving_server
from simulations.audit.search import Find, Needles
from simulations.audit.wire import Left, TappedGrid, logs_kept, server_files
from simulations.local_grid import run_on

FEWEST_HONEST = 3
"""Devices of our federation that have no faulty handlers, at least."""
CONTRAST_DEVICES = 2
HARDLY_ANY = 1e-6
"""A quorum that devices which are stopped cannot spoil."""
TRAINED_METHOD = "meso"
EXPECTED = {
    "uploads": frozenset({"user LoRA", f"trained {TRAINED_METHOD}", "embedding"}),
    "unguarded": frozenset(
        {"history text", "target", "item id", "user id", "query", "gold", "file name"}
    ),
}
"""What each device of a contrast sends, so that it has to be found."""


@dataclass(frozen=True)
class Egress:
    """What a search has found in what left the devices of one federation.

    Attributes
    ----------
    federation : str
    devices : int
    faults : tuple of str
        What handlers behind the guard tried, one a device.
    never_run : tuple of str
        Faults among them that no request came to: nothing is known of these.
    held_back : int
        Faulty devices that were stopped: their fault was run, the guard's own log tells of that
        request, and a refusal in fixed words is what left.
    honest_failed : int
        Devices without a fault that did not answer every request of the privacy mode: then it
        was not the faults that the guard has stopped.
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
    never_run: tuple[str, ...]
    held_back: int
    honest_failed: int
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
    def sent(self) -> frozenset[tuple[int, str]]:
        """Device and kind of each canary that a contrast lets out; none of ours may be."""
        kinds = EXPECTED.get(self.federation, frozenset())
        return frozenset((device, kind) for device in range(self.devices) for kind in kinds)

    @property
    def found(self) -> frozenset[tuple[int, str]]:
        """Device and kind of each canary that was found, however often."""
        return frozenset((find.device, find.kind) for find in self.finds)

    @property
    def missed(self) -> frozenset[str]:
        """Kinds of canary that a contrast let out and the search did not find on every device."""
        return frozenset(kind for _, kind in self.sent - self.found)

    @property
    def passed(self) -> bool:
        """Whether nothing was found and every fault was tried; in a contrast, all was found."""
        if self.contrast:
            return not self.missed
        return not (self.finds or self.never_run or self.honest_failed) and (
            self.held_back == len(self.faults)
        )


def measure_egress(ground: Ground) -> tuple[Egress, ...]:
    """Run the federations and search what leaves them.

    Raises
    ------
    RuntimeError
        If a canary is not in the vault that it was planted in.
    """
    careless = receiving_server()
    wanted = tried(ground.config.privacy.mode)
    honest = honest_devices(wanted)
    faults = dict(enumerate(wanted, start=honest))
    return (
        measure_ours(ground, honest, faults),
        _searched(ground, "uploads", uploading_app(), careless, CONTRAST_DEVICES),
        _searched(ground, "unguarded", unguarded_app(), careless, CONTRAST_DEVICES),
    )


def honest_devices(faults: Sequence[Tried]) -> int:
    """Return how many devices without a fault let a round go to its end.

    A device that the guard has stopped drops out. If it has joined a secure sum by then, there
    have to be neighbours enough left who open the sum; else its last stage would never be asked.
    """
    joined = sum(request in (SHARES, MASKED, UNMASK) for request, _ in faults)
    return next(n for n in count(FEWEST_HONEST) if n - 1 >= threshold_of(n + joined))


def measure_ours(ground: Ground, honest: int, faults: Mapping[int, Tried]) -> Egress:
    """Run our apps, on some devices with handlers that leak, and search what leaves.

    Parameters
    ----------
    honest : int
        Devices without a fault; the first ones.
    faults : mapping of int to (str, str)
        Of the others, by partition.
    """
    ran: set[tuple[int, str]] = set()
    app = guarded_app(faults, ran)
    return _searched(ground, "mesofed", app, server_app, honest + len(faults), faults, ran)


def _searched(
    ground: Ground,
    name: str,
    client_app: ClientApp,
    server: ServerApp,
    devices: int,
    faults: Mapping[int, Tried] | None = None,
    ran: Set[tuple[int, str]] = frozenset(),
) -> Egress:
    faults = faults or {}
    methods = (PLANTED_METHOD, TRAINED_METHOD)
    run = found(ground, f"egress-{name}", methods, devices, quorum=HARDLY_ANY)
    planted = [canary for device in range(devices) for canary in _moved_in(ground, run, device)]
    grid = TappedGrid(client_app, devices, run)
    with logs_kept() as records:
        run_on(grid, server, run)
    own = [
        canary
        for device in range(devices)
        for canary in learned(vault_of(ground, run, device), device)
    ]
    messages = [left.data for left in grid.left]
    logs = ["\n".join(records.lines).encode("utf-8", "backslashreplace")]
    left = {"messages": messages, "logs": logs, "files": server_files(run)}
    needles = Needles([*planted, *own])
    mode = ground.config.privacy.mode
    return Egress(
        federation=name,
        devices=devices,
        faults=tuple(f"{fault} ({request})" for request, fault in faults.values()),
        never_run=tuple(
            f"{fault} ({request})"
            for device, (request, fault) in faults.items()
            if (device, request) not in ran
        ),
        held_back=sum(
            (device, request) in ran and _stopped(run, grid.left, device, request)
            for device, (request, _) in faults.items()
        ),
        honest_failed=_failed(grid.left, set(range(devices)) - set(faults), mode) if faults else 0,
        replies=len(grid.left),
        searched={source: sum(map(len, blobs)) for source, blobs in left.items()},
        canaries=dict(Counter(canary.kind for canary in (*planted, *own))),
        windows=needles.count,
        finds=_finds(needles, name, left),
    )


def _stopped(run: Path, left: Sequence[Left], device: int, request: str) -> bool:
    """Return whether the guard wrote down a device's request, and a refusal is all that left."""
    log = vault_folder_of(run, device).with_suffix(".errors.log")
    told = log.exists() and f" {request}\n" in log.read_text(encoding="utf-8")
    kinds = [reply.kind for reply in left if (reply.device, reply.request) == (device, request)]
    return told and kinds == ["refusal"]


def _failed(left: Sequence[Left], honest: Set[int], mode: str) -> int:
    """Return how many of some devices did not answer each request of a privacy mode once."""
    wanted = Counter(message.type for message in MESSAGES if mode in message.modes)
    return sum(
        Counter(r.request for r in left if r.device == device and r.kind == "answer") != wanted
        for device in honest
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
