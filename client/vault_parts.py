"""The parts of a vault by name, and what to do about each if it is damaged."""

from client.lock import PERSON

INSTALLED, SERVER_KEY = "installed.json", "server.pub"
EMBEDDING, PRIVATE, RELEASES = "embedding", "private", "releases"
SESSIONS, STATISTICS = "sessions", "statistics"

RESTORE = (
    "Restore it from a copy of the vault. Without one, begin anew with `mesofed device forget` and "
    "`mesofed device init`; the new vault's privacy budget then comes on top of the old one's."
)
_REMEDIES = {
    PERSON: RESTORE,
    INSTALLED: RESTORE,
    SERVER_KEY: "Ask the server's operator for the key, and run `mesofed device trust` with it.",
    RELEASES: (
        "Restore it from a copy, or leave `mesofed device start` running: the server's next "
        "release takes its place."
    ),
    EMBEDDING: "Nothing to do: it is computed again from the history where it is needed.",
    PRIVATE: "Train it again: `mesofed device start` does.",
    STATISTICS: "Nothing to do: the journal has what was sent of them.",
    SESSIONS: "Nothing to do: this device sits that secure sum out, and joins the next.",
}
"""What to do about a file that is damaged, by the first part of its name."""


def remedy(name: str) -> str:
    """Return what to do if a file of a vault is damaged."""
    return _REMEDIES[name.partition("/")[0]]
