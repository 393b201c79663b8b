"""The privacy ledger of a device: what its answers have cost, and whether one more fits.

It lies in the journal, each cost beside the answer that it is for. So no answer leaves without its
cost being on the disk, and no kill comes between the two.
"""

from datetime import UTC, datetime

from client.device import Device
from client.vault import Vault
from shared.errors import MesofedError
from shared.privacy import LedgerEntry, would_exceed
from shared.protocol import REASONS, ROUTER_STATISTICS, ProtocolError, Refusal


def ledger(vault: Vault) -> tuple[LedgerEntry, ...]:
    """Return what the answers of a device have cost, oldest first.

    Raises
    ------
    MesofedError
        If the journal is damaged or an entry is none.
    """
    return tuple(map(LedgerEntry.from_json, vault.sent.costs()))


def require_unsent(device: Device, release: int) -> None:
    """Refuse to send with noise what has left the device without.

    Raises
    ------
    MesofedError
        If the statistics of the release were sent in privacy mode off.
    """
    if device.vault.sent.count(ROUTER_STATISTICS, release):
        raise MesofedError(
            f"Expected statistics of release {release} that have not left this device yet; they "
            "have, without noise, in privacy mode off. No noise can take that back: ask about the "
            "next release."
        )


def charge(device: Device, release: int, mechanism: str, noise_multiplier: float) -> LedgerEntry:
    """Return the entry for one more answer; it counts once it is in the journal.

    Raises
    ------
    ProtocolError
        If the device's budget does not allow the answer.
    MesofedError
        If the statistics of the release have left the device before.
    """
    before = ledger(device.vault)
    require_unsent(device, release)
    if any(entry.release == release for entry in before):
        raise MesofedError(
            f"Expected the first question about the statistics of release {release}; they have "
            "left this device before, under other noise or in another sum. Ask about the next one."
        )
    budget = device.privacy
    if would_exceed(before, noise_multiplier, budget.epsilon, budget.delta):
        raise ProtocolError(REASONS[Refusal.BUDGET_SPENT], Refusal.BUDGET_SPENT)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return LedgerEntry(release, mechanism, noise_multiplier, now)
