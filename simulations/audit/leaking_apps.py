"""ClientApps that would let secrets out: behind Mesofed's egress guard, and without any.

Behind the guard nothing of them may arrive. Without it everything must, or the search is worth
nothing: an upload of the user LoRA that the device keeps, and an error with its text.
"""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client import app as honest_app
from client.egress import egress_guard
from client.simulated import ask_simulated, open_simulated
from client.vault import Vault
from shared.errors import MesofedError
from shared.protocol import ProtocolError, Refusal
from shared.run_settings import partition, vault_folder
from shared.wire import MESSAGES

Fault = Callable[[Message, Message, Vault], Message]
"""What a faulty handler makes of request, honest reply and vault."""
Handler = Callable[[Message, Context], Message]
Tried = tuple[str, str]
"""Type of the request, and the fault in the handler that answers it."""


def secret_words(vault: Vault) -> str:
    """Return all that a person wrote, as an error text or a careless log would hold it."""
    person = vault.person()
    items = " ".join(f"{item.item_id} {item.text} {item.target}" for item in person.history)
    questions = " ".join(f"{query.text} {query.gold}" for query in person.queries)
    names = " ".join(sorted(path.name for path in vault.folder.iterdir()))
    return f"{person.user_id}: {items} {questions} {names}"


def user_loras(vault: Vault) -> ArrayRecord:
    """Return every LoRA of a vault, and the embedding, as an upload in fp32."""
    arrays = {}
    for path in sorted(vault.folder.glob("private/r*/*.safetensors")):
        found = vault.load_private(int(path.parent.name.removeprefix("r")), path.stem)
        for name, tensor in found[0].items() if found is not None else ():
            arrays[f"{path.stem}.{name}"] = Array(np.ascontiguousarray(tensor.numpy()))
    for path in sorted(vault.folder.glob("embedding/*.safetensors")):
        embedding = vault.load_embedding(path.stem)
        if embedding is not None:
            arrays["embedding"] = Array(embedding.numpy())
    return ArrayRecord(arrays)


def _raises(make: Callable[[str], BaseException]) -> Fault:
    def fault(request: Message, reply: Message, vault: Vault) -> Message:
        raise make(secret_words(vault))

    return fault


def _replies(make: Callable[[Vault], RecordDict]) -> Fault:
    def fault(request: Message, reply: Message, vault: Vault) -> Message:
        return Message(make(vault), reply_to=request)

    return fault


def _adds(request: Message, reply: Message, vault: Vault) -> Message:
    reply.content["more"] = user_loras(vault)
    return reply


def _writes(request: Message, reply: Message, vault: Vault) -> Message:
    (record,) = reply.content.values()  # metrics and settings alike may be a list of numbers
    numbers = [array.numpy().flatten() for array in user_loras(vault).values()]
    record["more"] = np.concatenate(numbers).astype(float).tolist()
    return reply


def _tells_in_an_error(request: Message, reply: Message, vault: Vault) -> Message:
    return Message(Error(1, secret_words(vault)), reply_to=request)


FAULTS: dict[str, Fault] = {
    "raises an exception": _raises(RuntimeError),
    "raises Mesofed's own exception": _raises(MesofedError),
    "raises a protocol error": _raises(lambda text: ProtocolError(text, Refusal.REPLY_BLOCKED)),
    "ends the process": _raises(SystemExit),
    "replies with the user LoRA": _replies(lambda vault: RecordDict({"lora": user_loras(vault)})),
    "replies with texts": _replies(
        lambda vault: RecordDict({"note": ConfigRecord({"text": secret_words(vault)})})
    ),
    "adds the user LoRA to the reply": _adds,
    "tells it in an error reply": _tells_in_an_error,
    "writes the user LoRA into the reply's record": _writes,
}
"""What faulty handlers do; the last needs an answer that has a record."""
OF_EVERY_REQUEST = ("raises an exception", "adds the user LoRA to the reply")
OF_EVERY_RECORD = "writes the user LoRA into the reply's record"


def tried(mode: str) -> tuple[Tried, ...]:
    """Return what faulty devices try in a privacy mode, one thing a device.

    Every message that a device answers in the mode is tried, by an exception and by what its own
    form has to refuse; the first one that is about the statistics by every fault there is.
    """
    install, first, *later = (message for message in MESSAGES if mode in message.modes)
    return (
        *((install.type, fault) for fault in OF_EVERY_REQUEST),
        *((first.type, fault) for fault in FAULTS),
        *((m.type, fault) for m in later for fault in (*OF_EVERY_REQUEST, OF_EVERY_RECORD)),
    )


def guarded_app(faults: Mapping[int, Tried], ran: set[tuple[int, str]]) -> ClientApp:
    """Return Mesofed's ClientApp, with handlers that leak on some devices.

    Parameters
    ----------
    faults : mapping of int to (str, str)
        By partition.
    ran : set of (int, str)
        Takes partition and request of each fault that is run, once the honest handler has
        answered: a fault that was never run was not stopped by anybody.
    """
    app = ClientApp(mods=[egress_guard])

    def handled(honest: Handler) -> Handler:
        def handler(message: Message, context: Context) -> Message:
            reply, device = honest(message, context), partition(context)
            request, fault = faults.get(device, ("", ""))
            if request != message.metadata.message_type:
                return reply
            ran.add((device, request))
            return FAULTS[fault](message, reply, Vault(vault_folder(context)))

        return handler

    for message in MESSAGES:
        action, name = message.type.split(".")
        getattr(app, action)(name)(handled(getattr(honest_app, name)))
    return app


def uploading_app() -> ClientApp:
    """Return a ClientApp that installs, trains and uploads the user LoRA that ought to stay."""
    app = ClientApp()

    @app.train("install_release")
    def upload(message: Message, context: Context) -> Message:
        ask_simulated(context, message.metadata.message_type, message.content)
        vault = open_simulated(context).vault
        return Message(RecordDict({"lora": user_loras(vault)}), reply_to=message)

    return app


def unguarded_app() -> ClientApp:
    """Return a ClientApp whose error, with its text, goes to the server."""
    app = ClientApp()

    @app.train("install_release")
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError(f"cannot train on {secret_words(Vault(vault_folder(context)))}")

    return app
