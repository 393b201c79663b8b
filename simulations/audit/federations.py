"""The federations of an audit: one release, trained once, and devices of several kinds for it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp

from client.app import app as client_app
from client.vault import Vault
from server.app import app as server_app
from server.signing_keys import signer
from server.training import train_release
from shared.atomic_file import write_text
from shared.base_model import BaseModel, load_base
from shared.compute import compute, use_threads
from shared.config import RunConfig, dump_config
from shared.corpus.load import load_corpus
from shared.corpus.split import split_users
from shared.errors import MesofedError
from shared.run_settings import keys_folder
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.graph import FEWEST_DEVICES
from shared.secure_aggregation.messages import MASKED
from simulations.audit.people import Halved, halved
from simulations.audit.wire import Left, TappedGrid
from simulations.local_grid import run_on

UPLOADED = "oppu"
"""The method whose user LoRA devices give away in a contrast to the search of what leaves."""
LEAST_SERVER_USERS, LEAST_DEVICES = 4, 4
RELEASE = 1
"""That all federations are about."""


@dataclass(frozen=True)
class Ground:
    """What the parts of an audit stand on.

    Attributes
    ----------
    config : RunConfig
        One round of those that share the privacy budget, and a least secure sum that so few
        devices reach.
    folder : Path
        Holds a folder for each federation.
    base : BaseModel
    origin : str
        Of the corpus, in words.
    server, devices : tuple of Halved
        People on both sides.
    """

    config: RunConfig
    folder: Path
    base: BaseModel
    origin: str
    server: tuple[Halved, ...]
    devices: tuple[Halved, ...]

    @property
    def server_run(self) -> Path:
        """The run folder of the server that trained the release."""
        return self.folder / "server"


def lay_ground(config: RunConfig, folder: Path) -> Ground:
    """Check that an audit can be made, and train the release that it is about.

    Raises
    ------
    MesofedError
        If the folder is in use, the settings are for a deployment or another engine, or the
        corpus is too small to divide.
    """
    if (folder / "server").exists():
        raise MesofedError(f"{folder} holds an audit already. Name another folder with --out.")
    if config.rounds.devices or config.engine != "local":
        raise MesofedError(
            "Expected engine=local and rounds.devices=0: an audit looks at every byte of a "
            "federation in one process. Leave these settings out."
        )
    config = config.model_copy(
        update={
            "methods": (UPLOADED,),
            "rounds": config.rounds.model_copy(update={"count": 1}),
            "privacy": config.privacy.model_copy(
                update={"rounds": config.budget_rounds, "minimum_devices": FEWEST_DEVICES}
            ),
        }
    )
    corpus = load_corpus(config.corpus, config.seed)
    people = split_users(corpus, config.corpus, config.seed)
    server = halved(people.server, config.seed, LEAST_SERVER_USERS, "server")
    devices = halved(people.device, config.seed, LEAST_DEVICES, "device")
    use_threads(config.threads)
    base = compute(partial(load_base, config.base, config.adapt))
    ground = Ground(config, folder, base, corpus.origin, server, devices)
    write_text(ground.server_run / "config.toml", dump_config(config))
    users = tuple(person.given for person in server)
    compute(lambda: train_release(config, ground.server_run, 1, users))
    return ground


def found(
    ground: Ground, name: str, methods: Sequence[str], devices: int, *, quorum: float | None = None
) -> Path:
    """Return the run folder of a new federation with the same release, and ``devices`` devices.

    Parameters
    ----------
    quorum : float, optional
        In place of the configured one, for a federation most of whose devices will be stopped.
    """
    run = ground.folder / name
    rounds = ground.config.rounds
    if quorum is not None:
        rounds = rounds.model_copy(update={"quorum": quorum})
    config = ground.config.model_copy(update={"methods": tuple(methods), "rounds": rounds})
    shutil.copytree(ground.server_run, run)
    corpus = config.corpus.model_copy(update={"device_users": devices})
    write_text(run / "config.toml", dump_config(config.model_copy(update={"corpus": corpus})))
    return run


def vault_folder_of(run: Path, device: int) -> Path:
    """Return where a device's vault lies in a run's folder."""
    return run / "vaults" / f"{device:04d}"


def vault_of(ground: Ground, run: Path, device: int) -> Vault:
    """Return a device's vault, which trusts the server."""
    vault = Vault(vault_folder_of(run, device), pool=run / "pool")
    vault.trust(signer(keys_folder(ground.config, ground.server_run)).public)
    return vault


@dataclass(frozen=True)
class PeopleRun:
    """The federation of all device users, after its round.

    Attributes
    ----------
    run : Path
        Its folder.
    devices : int
    left : tuple of Left
        Every reply as it crossed the wire; small, for no release is among them.
    under_masks : dict of tuple of int
        By device, the vector that it put into a secure sum. A vault has it until the sum is opened,
        so the audit looks it up on the way.
    """

    run: Path
    devices: int
    left: tuple[Left, ...]
    under_masks: Mapping[int, tuple[int, ...]]


class _PeopleGrid(TappedGrid):
    """The tap, and a look into each vault when its masked vector has left."""

    def __init__(self, client_app: ClientApp, devices: int, run: Path) -> None:
        super().__init__(client_app, devices, run)
        self.folder, self.under_masks = run, dict[int, tuple[int, ...]]()

    def _answer(self, request: Message, node: int) -> Message:
        reply = super()._answer(request, node)
        if request.metadata.message_type == MASKED:
            kept = Vault(vault_folder_of(self.folder, node - 1)).session(RELEASE)
            vector = DeviceSession.from_bytes(kept).vector if kept is not None else None
            if vector is not None:
                self.under_masks[node - 1] = vector
        return reply


def run_people(ground: Ground) -> PeopleRun:
    """Run the federation of all device users, each with the given half of the own history."""
    run = found(ground, "people", ("population",), len(ground.devices))
    for device, person in enumerate(ground.devices):
        vault_of(ground, run, device).move_in(person.given)
    grid = _PeopleGrid(client_app, len(ground.devices), run)
    run_on(grid, server_app, run)
    return PeopleRun(run, len(ground.devices), tuple(grid.left), grid.under_masks)
