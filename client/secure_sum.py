"""A device's stages of a secure sum, its state in the vault between them.

The state is on the disk before an answer is made of it. A session may give way to another until
the masked vector has left: then the person's statistics are in a sum, and are in no other.
"""

import secrets
from collections.abc import Callable

from client.device import Device
from client.ledger import charge, ledger, require_unsent
from client.noised_statistics import noised_vector
from shared.errors import MesofedError
from shared.privacy import LedgerEntry, honest_devices, share_variance, summed_multiplier
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SHARES,
    UNMASK,
    Body,
    Delivery,
    DeviceKeys,
    Roster,
    Session,
    Survivors,
)

MOST_SUMS = 100
"""Begun for one release: each has keys of its own, and the journal keeps what leaves."""

Stage = Callable[[Device, Session, Body | None], tuple[Body, LedgerEntry | None]]


def _keys(device: Device, session: Session, body: Body | None) -> tuple[Body, None]:
    """Join a session."""
    # Not only where it would cost something: the others would have sent theirs by then.
    require_unsent(device, session.release)
    kept = _kept(device, session.release)
    if kept is None or kept.session != session:
        if any(entry.release == session.release for entry in ledger(device.vault)):
            raise MesofedError(
                f"Expected no other secure sum for release {session.release}; this device's "
                "statistics are in one."
            )
        if device.vault.sent.count(KEYS, session.release) >= MOST_SUMS:
            raise MesofedError(
                f"Expected at most {MOST_SUMS} secure sums to be begun for release "
                f"{session.release}; the server has begun as many. It has to go on to the next one."
            )
        kept = DeviceSession(session, secrets.token_bytes(32))
        _keep(device, kept)
    keys: DeviceKeys = kept.keys()
    return keys, None


def _shares(device: Device, session: Session, body: Body | None) -> tuple[Body, None]:
    """Deal the shares of this device's secrets."""
    assert isinstance(body, Roster)
    state, dealt = _same(device, session).deal(body, device.privacy.minimum_devices)
    _keep(device, state)
    return dealt, None


def _masked(device: Device, session: Session, body: Body | None) -> tuple[Body, LedgerEntry | None]:
    """Send the noised statistics under masks: the one stage that costs privacy."""
    assert isinstance(body, Delivery)
    state = _same(device, session)
    if state.roster is None:
        raise MesofedError("Expected to be asked for shares before a masked vector.")
    roster, share = state.roster, device.privacy.honest_share
    honest = honest_devices(roster.needed, roster.devices, share)
    variance = share_variance(session.noise_multiplier, honest)
    vector = state.vector
    if vector is None:
        generator = device.randomness(session.release)
        vector = tuple(noised_vector(device.statistics(), variance, generator))
    multiplier = summed_multiplier(variance, honest, len(vector))
    cost = charge(device, session.release, "central", multiplier)
    state, masked = state.masked(body, vector)
    _keep(device, state)
    return masked, cost


def _unmask(device: Device, session: Session, body: Body | None) -> tuple[Body, None]:
    """Open one share of each neighbour."""
    assert isinstance(body, Survivors)
    state, revealed = _same(device, session).reveal(body)
    _keep(device, state)
    return revealed, None


STAGES: dict[str, Stage] = {KEYS: _keys, SHARES: _shares, MASKED: _masked, UNMASK: _unmask}


def _kept(device: Device, release: int) -> DeviceSession | None:
    data = device.vault.session(release)
    return None if data is None else DeviceSession.from_bytes(data)


def _same(device: Device, session: Session) -> DeviceSession:
    """Return the kept state of a session.

    Raises
    ------
    MesofedError
        If the device is in no such session: it never was, or it is over.
    """
    kept = _kept(device, session.release)
    if kept is None or kept.session != session:
        raise MesofedError(
            f"Expected the secure sum that this device joined for release {session.release}; got "
            "another, or one that is over."
        )
    return kept


def _keep(device: Device, state: DeviceSession) -> None:
    device.vault.save_session(state.session.release, state.to_bytes())
