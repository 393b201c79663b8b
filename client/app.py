"""The Flower ClientApp: a thin shim that passes the protocol's requests on to a device.

On a real device it asks the agent behind the socket that ``node_config["agent"]`` names; in a
simulation the device lives in the same process. Flower sends import errors to the server with
their text, so both are imported inside the handlers, behind the egress guard.
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.egress import egress_guard

app = ClientApp(mods=[egress_guard])


@app.train("install_release")
def install_release(message: Message, context: Context) -> Message:
    """Bring a release to the device, which verifies it; answer: nothing."""
    return _asked(message, context)


@app.query("router_statistics")
def router_statistics(message: Message, context: Context) -> Message:
    """Answer with the router statistics of the installed release."""
    return _asked(message, context)


@app.query("noised_statistics")
def noised_statistics(message: Message, context: Context) -> Message:
    """Answer with the same under noise."""
    return _asked(message, context)


@app.query("secagg_keys")
def secagg_keys(message: Message, context: Context) -> Message:
    """Join a secure sum of the statistics."""
    return _asked(message, context)


@app.query("secagg_shares")
def secagg_shares(message: Message, context: Context) -> Message:
    """Deal shares of this device's secrets of the sum."""
    return _asked(message, context)


@app.query("secagg_masked")
def secagg_masked(message: Message, context: Context) -> Message:
    """Answer with the noised statistics under masks."""
    return _asked(message, context)


@app.query("secagg_unmask")
def secagg_unmask(message: Message, context: Context) -> Message:
    """Open what takes the masks off the sum."""
    return _asked(message, context)


def _asked(message: Message, context: Context) -> Message:
    request, agent = message.metadata.message_type, context.node_config.get("agent")
    if agent:
        from client.agent_call import ask_agent

        content = ask_agent(Path(str(agent)).expanduser(), request, message.content)
    else:
        from client.simulated import ask_simulated

        content = ask_simulated(context, request, message.content)
    return Message(content, reply_to=message)
