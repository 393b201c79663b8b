"""The peer of the boundary row: a round with as little of a privacy boundary as there can be.

    server  release in one record ->  device: keep the files, train  -> an empty answer
    server  question              ->  device: route                  -> the statistics as floats

Nothing is signed, hashed, checked, sealed, noised or written down, and no mod stands before the
app. The release's tensors are those of the server, as if reading them cost nothing. What is left
is what any round has to do: files to the device and onto its disk, embed, train, keep, answer.
"""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.device import Device
from client.personalize import Routing
from client.vault import Vault
from shared.base_model import BaseModel
from shared.compute import compute
from shared.config import RunConfig
from shared.corpus.user import User
from shared.errors import MesofedError
from shared.release import Release
from shared.release_files import read_release_files, write_release_files
from shared.run_settings import partition, vault_folder


@dataclass(frozen=True)
class BareDevice(Device):
    """A device that takes whatever comes for the release that it was given.

    Attributes
    ----------
    given : Release or None
        Its tensors; None only because a field of the base class has a default.
    """

    given: Release | None = None

    def release(self) -> Release:
        """Return the release, unverified."""
        assert self.given is not None
        return self.given

    def routing(self) -> Routing:
        """Return where the person stands in the release."""
        return compute(lambda: self._routing(self.release()))


def bare_client(
    base: BaseModel, config: RunConfig, release: Release, people: Sequence[User]
) -> ClientApp:
    """Return the devices' app."""
    app = ClientApp()

    def device_of(context: Context) -> BareDevice:
        return BareDevice(
            base,
            Vault(vault_folder(context)),
            config.methods,
            config.private,
            config.seed,
            given=release,
        )

    @app.train()
    def install(message: Message, context: Context) -> Message:
        device = device_of(context)
        if not device.vault.exists:
            device.vault.move_in(people[partition(context)])
        files = message.content.array_records["release"]
        device.vault.install(release.version, {n: a.numpy().tobytes() for n, a in files.items()})
        device.personalise()
        return Message(RecordDict(), reply_to=message)

    @app.query()
    def statistics(message: Message, context: Context) -> Message:
        routing = device_of(context).routing()
        anchors = [0.0] * len(release.bank)
        for index, weight in zip(routing.retrieval.anchors, routing.retrieval.weights, strict=True):
            anchors[index] = float(weight)
        record = MetricRecord({"experts": routing.experts.tolist(), "anchors": anchors})
        return Message(RecordDict({"statistics": record}), reply_to=message)

    return app


def bare_server(files: Mapping[str, bytes], folder: Path, devices: int) -> ServerApp:
    """Return the server's app: keep the files in a folder and send them, then ask.

    Raises
    ------
    MesofedError
        From the app, if a device fails or none of its numbers come.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        write_release_files(folder, files)
        kept = read_release_files(folder)
        arrays = {n: Array(np.frombuffer(data, dtype=np.uint8)) for n, data in kept.items()}
        content = RecordDict({"release": ArrayRecord(arrays)})
        for kind, question in (("train", content), ("query", RecordDict())):
            replies = list(
                grid.send_and_receive(
                    [Message(question, node, kind) for node in grid.get_node_ids()]
                )
            )
            failed = [reply.error.reason for reply in replies if reply.has_error()]
            if failed or len(replies) < devices:
                raise MesofedError(
                    f"Expected {devices} answers of the bare devices to {kind}; "
                    f"got {len(replies) - len(failed)}: {failed[:1]}. Please report it."
                )

    return app
