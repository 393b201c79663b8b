"""A device's side of one secure sum.

    keys -> deal -> masked -> reveal

All its secrets follow from one random number, ``master``, and everything else that it has said is
kept in the session. So a device whose process ends after each message, or is killed within one,
says the very same when it is asked again, and nothing when it is asked something else.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

from shared.errors import MesofedError
from shared.secure_aggregation import masks, shamir
from shared.secure_aggregation.graph import MOST_DEVICES, neighbours_of, threshold_of
from shared.secure_aggregation.messages import (
    NO_SHARE,
    Dealt,
    Delivery,
    DeviceKeys,
    MaskedVector,
    Revealed,
    Roster,
    Session,
    Survivors,
)


class ContradictionError(MesofedError):
    """A server that says something else than it said before, or that cannot be so."""


def share_commitment(context: bytes, kind: str, owner: int, place: int, share: bytes) -> bytes:
    """Return the hash by which a share that is opened later can be told from a wrong one."""
    return sha256(context + f"share|{kind}|{owner}|{place}|".encode() + share).digest()


def seed_commitment(context: bytes, seed: bytes) -> bytes:
    """Return the hash by which the seed of a device's own mask can be told from a wrong one."""
    return sha256(context + b"seed|" + seed).digest()


def pair_label(one: int, other: int) -> tuple[str, int, int]:
    """Return what the mask key of two devices is for, the same on both sides."""
    return ("mask", min(one, other), max(one, other))


@dataclass(frozen=True)
class DeviceSession:
    """The state of one device in one session.

    Attributes
    ----------
    session : Session
    master : bytes, 32
        Random, and never sent.
    roster : Roster or None
        As accepted.
    delivery : Delivery or None
        As accepted.
    vector : tuple of int or None
        What was masked: noised, so that the sum protects the person. Drawn once.
    survivors : Survivors or None
        As answered: there is no second answer.
    """

    session: Session
    master: bytes
    roster: Roster | None = None
    delivery: Delivery | None = None
    vector: tuple[int, ...] | None = None
    survivors: Survivors | None = None

    @cached_property
    def _context(self) -> bytes:
        return self.session.context

    def _secret(self, *label: str | int) -> bytes:
        return masks.derive(self.master, self._context, *label)

    def keys(self) -> DeviceKeys:
        """Return the public keys of this session."""
        return DeviceKeys(
            masks.public_key(self._secret("cipher key")),
            masks.public_key(self._secret("mask key")),
        )

    def deal(self, roster: Roster, minimum: int) -> tuple["DeviceSession", Dealt]:
        """Cut this device's secrets into shares, one sealed to each neighbour.

        Parameters
        ----------
        minimum : int
            The least number of devices that this device joins.

        Raises
        ------
        ContradictionError
            If the roster is not the one that was answered before, too small, or impossible.
        """
        if self.roster not in (None, roster):
            raise ContradictionError("Expected the same roster as before; got another.")
        self._check(roster, minimum)
        threshold, me = threshold_of(roster.devices), roster.index
        seed, cipher = self._secret("seed"), self._secret("cipher key")
        seed_shares, key_shares = (
            shamir.split(secret, threshold, roster.neighbours, self._secret(kind, "polynomial", me))
            for kind, secret in (("seed", seed), ("key", self._secret("mask key")))
        )
        sealed, commitments = [], []
        for place, keys in zip(roster.neighbours, roster.keys, strict=True):
            key = masks.agree(cipher, keys.cipher, self._context, "shares", me, place)
            if key is None:
                raise ContradictionError("Expected keys of neighbours; got one that is no key.")
            pair = seed_shares[place], key_shares[place]
            sealed.append(masks.seal_share(key, b"".join(pair), self._context))
            commitments.append(
                share_commitment(self._context, "seed", me, place, pair[0])
                + share_commitment(self._context, "key", me, place, pair[1])
            )
        dealt = Dealt(seed_commitment(self._context, seed), tuple(sealed), tuple(commitments))
        return replace(self, roster=roster), dealt

    def masked(
        self, delivery: Delivery, vector: Sequence[int]
    ) -> tuple["DeviceSession", MaskedVector]:
        """Mask a vector of whole numbers.

        Raises
        ------
        ContradictionError
            If the shares come from others than neighbours, from too few of them, or are not those
            that were answered before, or the vector is another.
        """
        roster = self._dealt()
        if self.delivery not in (None, delivery) or self.vector not in (None, tuple(vector)):
            raise ContradictionError("Expected the same shares as before; got others.")
        if not set(delivery.senders) <= set(roster.neighbours):
            raise ContradictionError("Expected shares of neighbours; got some of others.")
        if len(delivery.senders) < threshold_of(roster.devices):
            raise ContradictionError(
                f"Expected the shares of at least {threshold_of(roster.devices)} neighbours; got "
                f"{len(delivery.senders)}."
            )
        me, length, mine = roster.index, len(vector), self._secret("mask key")
        parts = [masks.to_ring(vector), masks.mask(self._secret("seed"), length)]
        keys = dict(zip(roster.neighbours, roster.keys, strict=True))
        for place in delivery.senders:
            key = masks.agree(mine, keys[place].mask, self._context, *pair_label(me, place))
            if key is None:
                raise ContradictionError("Expected keys of neighbours; got one that is no key.")
            pair = masks.mask(key, length)
            parts.append(pair if me < place else -pair)
        data = masks.to_bytes(masks.total(parts, length))
        return replace(self, delivery=delivery, vector=tuple(vector)), MaskedVector(data)

    def reveal(self, survivors: Survivors) -> tuple["DeviceSession", Revealed]:
        """Open one share of each neighbour: of its seed if it is in the sum, else of its key.

        Raises
        ------
        ContradictionError
            If the lists are not those that were answered before, do not name every neighbour that
            dealt exactly once, or name too few survivors.
        """
        roster = self._dealt()
        if self.delivery is None or self.vector is None:
            raise ContradictionError("Expected to be asked for the masked vector before.")
        if self.survivors not in (None, survivors):
            raise ContradictionError("Expected the same survivors as before; got others.")
        if {*survivors.survived, *survivors.dropped} != set(self.delivery.senders):
            raise ContradictionError("Expected each neighbour that dealt in one of two lists.")
        fewest = threshold_of(roster.devices)
        if len(survivors.survived) < fewest or not (
            max(roster.needed, len(survivors.survived) + 1) <= survivors.total <= roster.devices
        ):
            raise ContradictionError("Expected a sum of enough devices; got too few.")
        everyone = len(roster.neighbours) == roster.devices - 1
        if everyone and survivors.total != len(survivors.survived) + 1:
            # In a larger round a device has not met all, and has to take the server's word.
            raise ContradictionError("Expected the total to be that of the survivors named.")
        cipher = self._secret("cipher key")
        opened = {
            place: self._opened(roster, cipher, place, sealed)
            for place, sealed in zip(self.delivery.senders, self.delivery.sealed, strict=True)
        }
        size = shamir.SHARE_BYTES
        revealed = Revealed(
            tuple(opened[place][:size] for place in survivors.survived),
            tuple(opened[place][size:] for place in survivors.dropped),
        )
        return replace(self, survivors=survivors), revealed

    def _opened(self, roster: Roster, cipher: bytes, place: int, sealed: bytes) -> bytes:
        keys = roster.keys[roster.neighbours.index(place)]
        key = masks.agree(cipher, keys.cipher, self._context, "shares", place, roster.index)
        assert key is not None, "the key was one when this device dealt"
        opened = masks.open_share(key, sealed, self._context)
        return 2 * NO_SHARE if opened is None else opened

    def _dealt(self) -> Roster:
        if self.roster is None:
            raise ContradictionError("Expected to be asked for shares before.")
        return self.roster

    def _check(self, roster: Roster, minimum: int) -> None:
        if not minimum <= roster.needed <= roster.devices <= MOST_DEVICES:
            raise ContradictionError(
                f"Expected a sum that needs at least {minimum} devices; got {roster.needed} of "
                f"{roster.devices}."
            )
        if roster.index >= roster.devices or roster.neighbours != neighbours_of(
            roster.index, roster.devices
        ):
            raise ContradictionError("Expected this place's neighbours; got others.")
        mine = self.keys()
        found = [key for pair in (mine, *roster.keys) for key in (pair.cipher, pair.mask)]
        if len(set(found)) != len(found):
            raise ContradictionError("Expected a key of its own of every neighbour.")

    # Flower starts a process for every message: the session waits on the disk.

    def to_bytes(self) -> bytes:
        """Return the session as bytes. They hold its secrets: seal them."""
        return json.dumps(asdict(self), default=bytes.hex).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "DeviceSession":
        """Return the session that ``to_bytes`` kept.

        Raises
        ------
        MesofedError
            If it is none.
        """
        try:
            return _from_json(json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MesofedError(
                "Expected a session of a secure sum; it is damaged. This device sits this round "
                "out."
            ) from error


def _from_json(data: Any) -> DeviceSession:
    hexed = bytes.fromhex
    session, roster, delivery = data["session"], data["roster"], data["delivery"]
    survivors, vector = data["survivors"], data["vector"]
    if roster is not None:
        keys = tuple(DeviceKeys(hexed(k["cipher"]), hexed(k["mask"])) for k in roster["keys"])
        roster = Roster(**{**roster, "neighbours": tuple(roster["neighbours"]), "keys": keys})
    if delivery is not None:
        delivery = Delivery(tuple(delivery["senders"]), tuple(map(hexed, delivery["sealed"])))
    if survivors is not None:
        lists = tuple(survivors["survived"]), tuple(survivors["dropped"])
        survivors = Survivors(survivors["total"], *lists)
    return DeviceSession(
        Session(**{**session, "nonce": hexed(session["nonce"])}),
        hexed(data["master"]),
        roster,
        delivery,
        None if vector is None else tuple(vector),
        survivors,
    )
