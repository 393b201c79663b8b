"""The server's side of one secure sum.

    advertise -> roster        deal -> delivery        mask -> survivors        open

The state holds what devices have sent and what was refused of it, nothing else, so it may be kept
on the disk: a server that is killed goes on with the stage that it was at.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

from shared.errors import MesofedError
from shared.protocol import ReplyError
from shared.secure_aggregation import masks, shamir
from shared.secure_aggregation.device_session import (
    pair_label,
    seed_commitment,
    share_commitment,
)
from shared.secure_aggregation.graph import (
    FEWEST_DEVICES,
    MOST_DEVICES,
    neighbours_of,
    threshold_of,
)
from shared.secure_aggregation.messages import (
    DIGEST_BYTES,
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

NO_KEY = "the device sent a key that is none, or that another device has sent"
_PROBE = bytes(range(32))
"""A private key for trying whether a public key is one."""


@dataclass(frozen=True)
class Opened:
    """What came of a secure sum.

    Attributes
    ----------
    total : tuple of int or None
        The sum; None if it could not be opened.
    devices : tuple of int
        Node ids of those in the sum.
    wrong : tuple of int
        Nodes that opened another share than they were dealt. Their shares do not count.
    lost : tuple of int
        Nodes whose secrets too few neighbours could open; the sum is lost with them. Either their
        neighbours have gone, or they dealt shares that are none.
    """

    total: tuple[int, ...] | None
    devices: tuple[int, ...]
    wrong: tuple[int, ...]
    lost: tuple[int, ...]


@dataclass(frozen=True)
class ServerSession:
    """The state of a server in one session.

    Attributes
    ----------
    session : Session
    needed : int
        Devices that the sum needs; each device's share of the noise rests on it.
    length : int
        Numbers in a vector.
    nodes : tuple of int
        Node ids by place; empty before keys have come.
    keys : tuple of DeviceKeys
        By place.
    dealt : dict of int to Dealt
        By place, of those that have dealt.
    masked : dict of int to MaskedVector
        By place, of those in the sum.
    refused : tuple of (int, str)
        Node ids and reasons, of the stages that are over.
    """

    session: Session
    needed: int
    length: int
    nodes: tuple[int, ...] = ()
    keys: tuple[DeviceKeys, ...] = ()
    dealt: dict[int, Dealt] = field(default_factory=dict)
    masked: dict[int, MaskedVector] = field(default_factory=dict)
    refused: tuple[tuple[int, str], ...] = ()

    @cached_property
    def _places(self) -> dict[int, int]:
        return {node: place for place, node in enumerate(self.nodes)}

    def advertise(
        self, answers: Mapping[int, DeviceKeys]
    ) -> tuple["ServerSession", dict[int, str]]:
        """Take the devices' keys and put the devices in a circle.

        Returns
        -------
        session : ServerSession
        refused : dict of int to str
            Why a node is not in it.

        Raises
        ------
        MesofedError
            If too few or too many devices are left.
        """
        seen: set[bytes] = set()
        taken, refused = {}, {}
        for node in sorted(answers):
            keys = answers[node]
            pair = {keys.cipher, keys.mask}
            if pair & seen or any(masks.agree(_PROBE, key, b"") is None for key in pair):
                refused[node] = NO_KEY
                continue
            seen |= pair
            taken[node] = keys
        fewest = max(FEWEST_DEVICES, self.needed)
        if not fewest <= len(taken) <= MOST_DEVICES:
            raise MesofedError(
                f"Expected {fewest} to {MOST_DEVICES} devices in a secure sum; got {len(taken)}. "
                "Lower rounds.quorum or privacy.minimum_devices, or start more devices."
            )

        def shuffled(node: int) -> bytes:
            return sha256(self.session.context + f"place|{node}".encode()).digest()

        nodes = tuple(sorted(taken, key=shuffled))
        return replace(self, nodes=nodes, keys=tuple(taken[node] for node in nodes)), refused

    def roster(self, node: int) -> Roster:
        """Return what a device has to know to deal its shares."""
        place, count = self._places[node], len(self.nodes)
        neighbours = neighbours_of(place, count)
        return Roster(
            count, self.needed, place, neighbours, tuple(self.keys[other] for other in neighbours)
        )

    def check_dealt(self, node: int, dealt: Dealt) -> None:
        """Refuse shares that are not one for each neighbour.

        Raises
        ------
        ReplyError
            If they are not.
        """
        if len(dealt.sealed) != len(self._neighbours(self._places[node])):
            raise ReplyError("secagg-shares: expected one share for each neighbour")

    def deal(self, answers: Mapping[int, Dealt]) -> "ServerSession":
        """Take the devices' shares."""
        return replace(self, dealt={self._places[node]: answers[node] for node in answers})

    def ready(self) -> tuple[int, ...]:
        """Return the nodes that dealt, and of whose neighbours enough did."""
        fewest = threshold_of(len(self.nodes))
        return tuple(
            sorted(self.nodes[place] for place in self.dealt if len(self._dealers(place)) >= fewest)
        )

    def delivery(self, node: int) -> Delivery:
        """Return the shares that a device's neighbours have sealed to it."""
        place = self._places[node]
        senders = self._dealers(place)
        return Delivery(
            senders,
            tuple(self.dealt[sender].sealed[self._seat(sender, place)] for sender in senders),
        )

    def check_masked(self, vector: MaskedVector) -> None:
        """Refuse a vector of another length.

        Raises
        ------
        ReplyError
            If it is.
        """
        if len(vector.data) != masks.NUMBER_BYTES * self.length:
            raise ReplyError("secagg-masked: expected a vector of the release's length")

    def mask(self, answers: Mapping[int, MaskedVector]) -> "ServerSession":
        """Take the masked vectors; whoever sent none has dropped out.

        Raises
        ------
        MesofedError
            If they are too few. Nothing may be opened then.
        """
        if len(answers) < self.needed:
            raise MesofedError(
                f"Expected the masked vectors of at least {self.needed} devices; got "
                f"{len(answers)}. Their sum would not be noised enough, and stays closed."
            )
        return replace(self, masked={self._places[node]: answers[node] for node in answers})

    def summed(self) -> tuple[int, ...]:
        """Return the nodes in the sum that may be asked to open shares."""
        fewest = threshold_of(len(self.nodes))
        return tuple(
            sorted(
                self.nodes[place]
                for place in self.masked
                if sum(other in self.masked for other in self._dealers(place)) >= fewest
            )
        )

    def survivors(self, node: int) -> Survivors:
        """Return what a device has to know to open its neighbours' shares."""
        dealers = self._dealers(self._places[node])
        return Survivors(
            len(self.masked),
            tuple(place for place in dealers if place in self.masked),
            tuple(place for place in dealers if place not in self.masked),
        )

    def check_revealed(self, node: int, revealed: Revealed) -> None:
        """Refuse shares that are not one of each neighbour that dealt.

        Raises
        ------
        ReplyError
            If they are not.
        """
        asked = self.survivors(node)
        if (len(revealed.seed_shares), len(revealed.key_shares)) != (
            len(asked.survived),
            len(asked.dropped),
        ):
            raise ReplyError("secagg-revealed: expected one share of each neighbour")

    def open(self, answers: Mapping[int, Revealed]) -> Opened:
        """Take the masks off the sum of all vectors.

        Parameters
        ----------
        answers : mapping of int to Revealed
            By node; each passed ``check_revealed``.
        """
        seeds, keys, wrong = self._shares(answers)
        context, threshold = self.session.context, threshold_of(len(self.nodes))
        parts = [masks.from_bytes(vector.data) for vector in self.masked.values()]
        lost = []
        for place in self.masked:
            seed = shamir.combine(seeds.get(place, {}), threshold)
            if seed is None or seed_commitment(context, seed) != self.dealt[place].seed_commitment:
                lost.append(place)
                continue
            parts.append(-masks.mask(seed, self.length))
        for place in self.dealt.keys() - self.masked.keys():
            partners = [other for other in self._dealers(place) if other in self.masked]
            if not partners:
                continue
            key = shamir.combine(keys.get(place, {}), threshold)
            if key is None or masks.public_key(key) != self.keys[place].mask:
                lost.append(place)
                continue
            for other in partners:
                agreed = masks.agree(key, self.keys[other].mask, context, *pair_label(place, other))
                assert agreed is not None, "keys were tried when they came"
                pair = masks.mask(agreed, self.length)
                parts.append(-pair if other < place else pair)  # what ``other`` added, taken off
        total = None if lost else tuple(masks.from_ring(masks.total(parts, self.length)))
        return Opened(
            total,
            tuple(sorted(self.nodes[place] for place in self.masked)),
            tuple(sorted(wrong)),
            tuple(sorted(self.nodes[place] for place in lost)),
        )

    def _shares(
        self, answers: Mapping[int, Revealed]
    ) -> tuple[dict[int, dict[int, bytes]], dict[int, dict[int, bytes]], set[int]]:
        """Return the right shares of seeds and of keys, by owner and place, and who sent wrong."""
        seeds: dict[int, dict[int, bytes]] = {}
        keys: dict[int, dict[int, bytes]] = {}
        wrong = set()
        for node, revealed in answers.items():
            place, asked = self._places[node], self.survivors(node)
            for kind, owners, shares, right in (
                ("seed", asked.survived, revealed.seed_shares, seeds),
                ("key", asked.dropped, revealed.key_shares, keys),
            ):
                for owner, share in zip(owners, shares, strict=True):
                    pair = self.dealt[owner].commitments[self._seat(owner, place)]
                    wanted = pair[:DIGEST_BYTES] if kind == "seed" else pair[DIGEST_BYTES:]
                    found = share_commitment(self.session.context, kind, owner, place, share)
                    if found == wanted:
                        right.setdefault(owner, {})[place] = share
                    elif share != NO_SHARE:
                        wrong.add(node)
        return seeds, keys, wrong

    def _neighbours(self, place: int) -> tuple[int, ...]:
        return neighbours_of(place, len(self.nodes))

    def _dealers(self, place: int) -> tuple[int, ...]:
        return tuple(other for other in self._neighbours(place) if other in self.dealt)

    def _seat(self, owner: int, place: int) -> int:
        """Return where among its neighbours an owner has a place."""
        return self._neighbours(owner).index(place)

    def to_bytes(self) -> bytes:
        """Return the session as bytes; they hold nothing that a device has not sent."""
        return json.dumps(asdict(self), default=bytes.hex).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "ServerSession":
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
                "Expected a session of a secure sum; it is damaged. Delete the file: devices that "
                "have sent a masked vector for this release send no other."
            ) from error


def _from_json(data: Any) -> ServerSession:
    hexed = bytes.fromhex

    def dealt(kept: Any) -> Dealt:
        return Dealt(
            hexed(kept["seed_commitment"]),
            tuple(map(hexed, kept["sealed"])),
            tuple(map(hexed, kept["commitments"])),
        )

    session = data["session"]
    return ServerSession(
        Session(**{**session, "nonce": hexed(session["nonce"])}),
        data["needed"],
        data["length"],
        tuple(data["nodes"]),
        tuple(DeviceKeys(hexed(keys["cipher"]), hexed(keys["mask"])) for keys in data["keys"]),
        {int(place): dealt(kept) for place, kept in data["dealt"].items()},
        {int(place): MaskedVector(hexed(v["data"])) for place, v in data["masked"].items()},
        tuple((int(node), str(reason)) for node, reason in data["refused"]),
    )
