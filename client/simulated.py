"""A device of a simulation: its person is one of the corpus, its vault lies in the run's folder."""

import threading
from functools import lru_cache, partial

from flwr.app import Context, RecordDict

from client.boundary import answer
from client.device import Device
from client.vault import Vault
from shared.base_model import load_base
from shared.compute import compute, use_threads
from shared.config import CorpusConfig
from shared.corpus.load import load_corpus
from shared.corpus.split import split_users
from shared.corpus.user import User
from shared.errors import MesofedError
from shared.noise import simulated_randomness
from shared.protocol import INSTALL_RELEASE
from shared.run_settings import keys_folder, partition, resolve_run, vault_folder

_reading = threading.Lock()


def ask_simulated(context: Context, message_type: str, content: RecordDict) -> RecordDict:
    """Ask the device of a simulation's node, as the agent's socket would.

    A release is acknowledged when the device has trained for it: a simulation has no time of its
    own to do so.

    Raises
    ------
    MesofedError
        As :func:`client.boundary.answer` and :func:`open_simulated` do.
    """
    device = open_simulated(context)
    reply = answer(device, message_type, content)
    if message_type == INSTALL_RELEASE:
        device.personalise()
    return reply


def open_simulated(context: Context) -> Device:
    """Return the device of a simulation's node; its person moves in when it is opened first.

    Raises
    ------
    MesofedError
        If the settings, the corpus or the vault cannot be used, or the partition has no person.
    """
    settings = resolve_run(context)
    config = settings.config
    vault = Vault(vault_folder(context), pool=settings.run_dir / "pool")
    if not vault.exists:
        people, index = _people(config.corpus, config.seed), partition(context)
        if index >= len(people):
            raise MesofedError(
                f"Expected a partition below {len(people)}, the number of device users; got "
                f"{index}. Start fewer nodes, or raise corpus.device_users."
            )
        public = keys_folder(config, settings.run_dir) / "release.pub"
        vault.trust(public.read_text(encoding="utf-8"))
        vault.move_in(people[index])
    use_threads(config.threads)
    base = compute(partial(load_base, config.base, config.adapt))
    return Device(
        base,
        vault,
        config.methods,
        config.private,
        config.seed,
        config.privacy,
        # Whoever has the run's seed can take this noise off again: a simulation protects nobody.
        simulated_randomness(config.seed, vault.folder.name),
    )


def _people(config: CorpusConfig, seed: int) -> tuple[User, ...]:
    # Many devices of a simulation are opened at once; one of them reads the corpus.
    with _reading:
        return _device_users(config, seed)


@lru_cache(maxsize=1)
def _device_users(config: CorpusConfig, seed: int) -> tuple[User, ...]:
    return split_users(load_corpus(config, seed), config, seed).device
