"""The parts of a vault by name, and what to do about each if it is damaged."""

from client.lock import PERSON
from shared.program import command

INSTALLED, SERVER_KEY = "installed.json", "server.pub"
EMBEDDING, PRIVATE, RELEASES = "embedding", "private", "releases"
SESSIONS, STATISTICS = "sessions", "statistics"


def restore() -> str:
    """Return what to do if something is damaged that nothing else tells of."""
    return (
        "Restore it from a copy of the vault. Without one, begin anew with "
        f"`{command('device', 'forget')}` and `{command('device', 'init')}`; the new vault's "
        "privacy budget then comes on top of the old one's."
    )


def remedy(name: str) -> str:
    """Return what to do if a file of a vault is damaged, by the first part of its name."""
    return {
        PERSON: restore(),
        INSTALLED: restore(),
        SERVER_KEY: (
            f"Ask the server's operator for the key, and run `{command('device', 'trust')}` with "
            "it."
        ),
        RELEASES: (
            f"Restore it from a copy, or leave `{command('device', 'start')}` running: the "
            "server's next release takes its place."
        ),
        EMBEDDING: "Nothing to do: it is computed again from the history where it is needed.",
        PRIVATE: f"Train it again: `{command('device', 'start')}` does.",
        STATISTICS: "Nothing to do: the journal has what was sent of them.",
        SESSIONS: "Nothing to do: this device sits that secure sum out, and joins the next.",
    }[name.partition("/")[0]]
