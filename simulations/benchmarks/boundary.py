"""The row on the privacy boundary: what it adds to a round of sixteen devices.

    bare      open vaults, no guard, no journal, nothing checked or signed (bare_round.py)
    off       the whole boundary as a deployed device has it, its vault sealed
    local     the same, with noise of each device
    central   the same, with noise and a secure sum

A round is as long as a run's own: histories, epochs and release are those of the defaults. All
devices train on the same release from the same histories, in whatever company they meet, and every
side has to leave the same private LoRAs. In a simulation vaults are open, so a device of this row
is put together as the device agent does it: a sealed vault, ``client.boundary``, the egress guard.
"""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from rich.console import Console
from torch import Tensor

from client.boundary import answer
from client.device import Device
from client.egress import egress_guard
from client.seal import KEY_BYTES, OPEN, Seal
from client.vault import Vault
from server.app import run_round
from server.signing_keys import signer
from shared.atomic_file import write_text
from shared.base_model import BaseModel, load_base
from shared.compute import compute
from shared.config import RunConfig, dump_config
from shared.corpus.load import load_corpus
from shared.corpus.split import split_users
from shared.corpus.user import User
from shared.lora.slab import Slab
from shared.progress import shown
from shared.protocol import INSTALL_RELEASE
from shared.release import Release, pack_release
from shared.release_files import write_release_files
from shared.routing import Router
from shared.run_settings import keys_folder, partition, vault_folder
from shared.signature import key_text, sign_release
from shared.state_cache import StateCache
from shared.wire import BY_TYPE
from simulations.benchmarks.bare_round import bare_client, bare_server
from simulations.benchmarks.interleave import interleave
from simulations.benchmarks.measurement import (
    Bar,
    Equality,
    Figure,
    Finding,
    Settings,
    checked,
    ratios,
)
from simulations.benchmarks.round_of_devices import DEVICES, METHOD, RELEASE, release_for
from simulations.local_grid import run_local

BARE, MODES = "bare", ("off", "local", "central")
# What the boundary may add to a round: a twentieth.
MOST = 1.05
# No secret: the vaults of a benchmark are of made-up people, and gone when it ends.
SEAL = Seal(bytes(range(KEY_BYTES)))

Private = list[dict[str, Tensor]]
"""What each device has trained."""


@dataclass(frozen=True)
class Round:
    """One side, ready to be run again and again.

    Attributes
    ----------
    side : str
    base : BaseModel
    config : RunConfig
    release : Release
        Under a base name of the side's own: no side then finds it unpacked by another.
    people : tuple of User
    """

    side: str
    base: BaseModel
    config: RunConfig
    release: Release
    people: tuple[User, ...]

    @property
    def seal(self) -> Seal:
        """Of the side's vaults."""
        return OPEN if self.side == BARE else SEAL


def boundary(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Time a round of devices without a boundary, with it, and with noise."""
    rounds = sides_of(settings)
    with tempfile.TemporaryDirectory(prefix="mesofed-") as name:
        folder = Path(name)
        equality = check_private(rounds, folder / "checked")
        seconds = interleave(
            {side: _again(a_round, folder / side) for side, a_round in rounds.items()},
            settings.rounds,
            on_round,
            warm=0,  # the check was a round of each
            within={side: lambda: _nothing_known(rounds[BARE].base) for side in rounds},
        )
    what = f"round of {DEVICES} devices"
    bar = Bar(MOST, at_least=False)
    return Finding(
        (
            _figure(f"{what}, whole boundary", "none", seconds, "off", BARE, bar),
            _figure("  and noise in a secure sum", "none", seconds, "central", BARE, bar),
            _figure("  noise of each device", "boundary alone", seconds, "local", "off"),
            _figure("  noise in a secure sum", "boundary alone", seconds, "central", "off"),
        ),
        (equality,),
        seconds,
    )


def sides_of(settings: Settings) -> dict[str, Round]:
    """Return the bare side, and one of each privacy mode."""
    config = run_config(settings)
    people = split_users(load_corpus(config.corpus, config.seed), config.corpus, config.seed).device
    base = compute(lambda: load_base(config.base, config.adapt))
    release = compute(lambda: full_release(base, config))
    sides = {}
    for side in (BARE, *MODES):
        privacy = config.privacy.model_copy(update={"mode": "off" if side == BARE else side})
        sides[side] = Round(
            side,
            base,
            config.model_copy(update={"privacy": privacy}),
            replace(release, base_name=f"{base.name}, {side}"),
            people,
        )
    return sides


def run_config(settings: Settings) -> RunConfig:
    """Return the configuration of a run: the defaults, but for the people and the method."""
    return RunConfig.model_validate(
        {
            "threads": settings.threads,
            "methods": [METHOD],
            "base": {"name": settings.model},
            "corpus": {"server_users": 2, "device_users": DEVICES, "max_queries": 1},
        }
    )


def full_release(base: BaseModel, config: RunConfig) -> Release:
    """Return a release with as many experts and anchors, of such ranks, as one that was trained."""
    experts, bank, small = config.experts, config.bank, release_for(base)
    return replace(
        small,
        experts=Slab.zeros(base.maps, experts.rank, experts.count).loras(),
        router=Router(torch.zeros(1, experts.count), torch.zeros(experts.count)),
        bank=Slab.zeros(base.maps, bank.rank, bank.anchors).loras(),
        anchors=torch.ones(bank.anchors, 1),
        top_k=bank.top_k,
    )


def check_private(rounds: dict[str, Round], folder: Path) -> Equality:
    """Run every side once; return that all leave the same private LoRAs, to the bit.

    Raises
    ------
    MesofedError
        If they do not.
    """
    private = {}
    for side, a_round in rounds.items():
        with _nothing_known(a_round.base):
            run(a_round, folder / side)
        private[side] = private_of(a_round, folder / side)
    differences = [_largest(private[BARE], found) for found in private.values()]
    return checked("private LoRAs of all devices, on every side", max(differences), 0.0)


def run(a_round: Round, folder: Path) -> None:
    """Run a round in a new folder: pack and sign, install, train, ask."""
    config, release = a_round.config, a_round.release
    write_text(folder / "config.toml", dump_config(config))
    files, kept = pack_release(release), folder / "releases" / f"r{RELEASE}"
    if a_round.side == BARE:
        server = bare_server(files, kept, DEVICES)
        client = bare_client(a_round.base, config, release, a_round.people)
    else:
        key = signer(keys_folder(config, folder))
        write_release_files(kept, sign_release(files, key))
        client = sealed_client(a_round, key_text(key.key.public_key()))
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            run_round(grid, config, kept, RELEASE, DEVICES)

    with shown(Console(quiet=True)):
        run_local(server, client, folder, DEVICES)


def sealed_client(a_round: Round, trusted: str) -> ClientApp:
    """Return an app whose devices are those of a deployment: sealed, guarded, keeping a journal."""
    app = ClientApp(mods=[egress_guard])

    def asked(message: Message, context: Context) -> Message:
        config = a_round.config
        vault = Vault(vault_folder(context), a_round.seal)
        if not vault.exists:
            vault.trust(trusted)
            vault.move_in(a_round.people[partition(context)])
        device = Device(
            a_round.base, vault, config.methods, config.private, config.seed, config.privacy
        )
        request = message.metadata.message_type
        reply = answer(device, request, message.content)
        if request == INSTALL_RELEASE:
            device.personalise()
        return Message(reply, reply_to=message)

    for message_type in BY_TYPE:
        category, _, action = message_type.partition(".")
        getattr(app, category)(action)(asked)
    return app


def private_of(a_round: Round, folder: Path) -> Private:
    """Return what each device has trained in a round."""
    found = []
    for device in range(DEVICES):
        trained = vault_of(a_round, folder, device).load_private(RELEASE, METHOD)
        assert trained is not None
        found.append(trained[0])
    return found


def vault_of(a_round: Round, folder: Path, device: int) -> Vault:
    """Return the vault of a device, counted from 0."""
    return Vault(folder / "vaults" / f"{device:04d}", a_round.seal)


def _largest(ours: Private, theirs: Private) -> float:
    """Return the largest relative difference between two sides' tensors; 0 is bit-equal."""
    largest = 0.0
    for own, other in zip(ours, theirs, strict=True):
        assert own.keys() == other.keys()
        for name, tensor in own.items():
            if not torch.equal(tensor, other[name]):
                difference = (tensor.double() - other[name].double()).norm()
                relative = float(difference / other[name].double().norm())
                largest = max(largest, relative if math.isfinite(relative) else math.inf)
    return largest


def _figure(
    what: str,
    against: str,
    seconds: dict[str, tuple[float, ...]],
    side: str,
    peer: str,
    bar: Bar | None = None,
) -> Figure:
    return Figure(what, against, ratios(seconds[side], seconds[peer]), bar, higher_is_better=False)


@contextmanager
def _nothing_known(base: BaseModel) -> Iterator[None]:
    """Forget the states of texts: every round embeds and trains as if it were the first."""
    if base.prefix is not None:
        base.prefix.cache = StateCache(base.prefix.cache.limit)
    yield


def _again(a_round: Round, folder: Path) -> Callable[[], None]:
    """Return what runs a round in a new folder each time."""
    numbers = itertools.count()
    return lambda: run(a_round, folder / str(next(numbers)))
