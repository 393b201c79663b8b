"""The Flower ClientApp: a thin shim that may ask a device two things and nothing else.

Flower sends import errors to the server with their text, so the device is imported inside the
handlers, behind the egress guard.
"""

from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.egress import egress_guard
from shared.protocol import (
    REASONS,
    ProtocolError,
    Refusal,
    read_statistics_request,
    release_from_content,
    statistics_to_content,
)

if TYPE_CHECKING:
    from client.device import Device

app = ClientApp(mods=[egress_guard])


@app.train("install_release")
def install_release(message: Message, context: Context) -> Message:
    """Bring a release to the device, which verifies it and personalises; answer: nothing."""
    from client.device import open_device

    device = open_device(context)
    _install(device, message)
    device.personalise()
    return Message(RecordDict(), reply_to=message)


def _install(device: "Device", message: Message) -> None:
    # The files are gone from the memory when this returns, before the long training.
    release, files = release_from_content(message.content)
    if device.install(files) != release:
        raise ProtocolError(REASONS[Refusal.OTHER_RELEASE], Refusal.OTHER_RELEASE)


@app.query("router_statistics")
def router_statistics(message: Message, context: Context) -> Message:
    """Answer with the router statistics of the installed release."""
    read_statistics_request(message.content)
    from client.device import open_device

    return Message(statistics_to_content(open_device(context).statistics()), reply_to=message)
