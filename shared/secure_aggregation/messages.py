"""The messages of secure aggregation, as values and as records.

    stage     server -> device                             device -> server
    keys      session                                      two public keys
    shares    session, roster: neighbours and their keys   shares for neighbours, each sealed
    masked    session, delivery: sealed shares to me       the masked vector
    unmask    session, survivors: who is in the sum        a share of each neighbour's one secret

Every message names its session: run, release and a random number of the server's. All keys depend
on it, so nothing of one session opens anything of another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, ClassVar, Protocol, Self

from flwr.app import ConfigRecord, RecordDict

from shared.protocol import (
    MAX_LENGTH,
    ROUND_FORM,
    ProtocolError,
    ReplyError,
    read_round,
    round_to_record,
)
from shared.record_form import Field, RecordForm, fault_of, fault_of_names
from shared.secure_aggregation.graph import FEWEST_DEVICES, MOST_DEVICES, MOST_NEIGHBOURS
from shared.secure_aggregation.masks import KEY_BYTES, NUMBER_BYTES, TAG_BYTES
from shared.secure_aggregation.shamir import SHARE_BYTES

KEYS = "query.secagg_keys"
SHARES = "query.secagg_shares"
MASKED = "query.secagg_masked"
UNMASK = "query.secagg_unmask"

NONCE_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
DIGEST_BYTES = 32
NO_SHARE = b"\xff" * SHARE_BYTES
"""Says that a neighbour's share could not be opened: above the prime, so it is no share."""
_INDEX_BYTES = 4


@dataclass(frozen=True)
class Session:
    """What binds the messages of one secure sum.

    Attributes
    ----------
    run : int
        Flower's number of the run that began it, below 2^63.
    release : int
    nonce : bytes, 32
        Random, by the server.
    noise_multiplier : float
        Of the sum's noise; each device decides whether its budget allows it.
    """

    run: int
    release: int
    nonce: bytes
    noise_multiplier: float

    @property
    def context(self) -> bytes:
        """32 bytes that are different for every other session."""
        text = f"mesofed secure aggregation|{self.run}|{self.release}|{self.noise_multiplier!r}|"
        return sha256(text.encode() + self.nonce).digest()


class Body(Protocol):
    """What a message says besides its round and session."""

    FORM: ClassVar[RecordForm]

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Read fields of the declared form.

        Raises
        ------
        ValueError
            If they contradict each other; its text is fixed.
        """


@dataclass(frozen=True)
class DeviceKeys:
    """Public keys: one that shares are sealed to, one that masks are agreed with.

    Two, since the private one of the second is opened when a device drops out.
    """

    cipher: bytes
    mask: bytes

    FORM: ClassVar = RecordForm(
        "secagg-keys",
        "config",
        (
            Field("cipher-key", "bytes", "X25519, for shares sealed to this device", size=32),
            Field("mask-key", "bytes", "X25519, for masks agreed with neighbours", size=32),
        ),
    )

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""
        return {"cipher-key": self.cipher, "mask-key": self.mask}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "DeviceKeys":
        """Read fields of the declared form."""
        if fields["cipher-key"] == fields["mask-key"]:
            raise ValueError("secagg-keys: expected two different keys")
        return cls(fields["cipher-key"], fields["mask-key"])


_FEW = {"least": 2, "most": MOST_NEIGHBOURS}
_ANY = {"least": 0, "most": MOST_NEIGHBOURS}


@dataclass(frozen=True)
class Roster:
    """Where a device stands, and the keys of its neighbours.

    Attributes
    ----------
    devices : int
        Places of the circle, n.
    needed : int
        Devices without whose numbers the sum is not opened.
    index : int
        This device's place, from 0.
    neighbours : tuple of int
        Their places, ascending.
    keys : tuple of DeviceKeys
        Of the neighbours, in that order.
    """

    devices: int
    needed: int
    index: int
    neighbours: tuple[int, ...]
    keys: tuple[DeviceKeys, ...]

    FORM: ClassVar = RecordForm(
        "secagg-roster",
        "config",
        (
            Field("devices", "int", "devices in the session", FEWEST_DEVICES, MOST_DEVICES),
            Field("needed", "int", "devices that the sum needs", FEWEST_DEVICES, MOST_DEVICES),
            Field("index", "int", "this device's place", 0, MOST_DEVICES - 1),
            Field("neighbours", "bytes", "places, 4 bytes each, ascending", size=4, **_FEW),
            Field("keys", "bytes", "two public keys of each neighbour", size=64, **_FEW),
        ),
    )

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""
        return {
            "devices": self.devices,
            "needed": self.needed,
            "index": self.index,
            "neighbours": _packed(self.neighbours),
            "keys": b"".join(key.cipher + key.mask for key in self.keys),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Roster":
        """Read fields of the declared form."""
        neighbours = _ascending(fields["neighbours"], "secagg-roster")
        keys = tuple(
            DeviceKeys(pair[:KEY_BYTES], pair[KEY_BYTES:])
            for pair in _items(fields["keys"], 2 * KEY_BYTES)
        )
        if len(keys) != len(neighbours):
            raise ValueError("secagg-roster: expected as many keys as neighbours")
        return cls(fields["devices"], fields["needed"], fields["index"], neighbours, keys)


@dataclass(frozen=True)
class Dealt:
    """A device's secrets in shares, one sealed to each neighbour, in the roster's order.

    Attributes
    ----------
    seed_commitment : bytes, 32
        Hash of the seed of its own mask.
    sealed : tuple of bytes
    commitments : tuple of bytes, 64 each
        Hashes of the share of the seed and of the share of the key: who opens a wrong one is
        caught.
    """

    seed_commitment: bytes
    sealed: tuple[bytes, ...]
    commitments: tuple[bytes, ...]

    FORM: ClassVar = RecordForm(
        "secagg-shares",
        "config",
        (
            Field("seed-commitment", "bytes", "hash of the seed of its own mask", size=32),
            Field("sealed", "bytes", "two shares for each neighbour", size=SEALED_BYTES, **_FEW),
            Field("commitments", "bytes", "hashes of these two shares", size=64, **_FEW),
        ),
    )

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""
        return {
            "seed-commitment": self.seed_commitment,
            "sealed": b"".join(self.sealed),
            "commitments": b"".join(self.commitments),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Dealt":
        """Read fields of the declared form."""
        sealed = _items(fields["sealed"], SEALED_BYTES)
        commitments = _items(fields["commitments"], 2 * DIGEST_BYTES)
        if len(sealed) != len(commitments):
            raise ValueError("secagg-shares: expected as many commitments as shares")
        return cls(fields["seed-commitment"], sealed, commitments)


@dataclass(frozen=True)
class Delivery:
    """The shares that neighbours have sealed to one device.

    Attributes
    ----------
    senders : tuple of int
        Their places, ascending; all who are not among them have dropped out.
    sealed : tuple of bytes
        In that order.
    """

    senders: tuple[int, ...]
    sealed: tuple[bytes, ...]

    FORM: ClassVar = RecordForm(
        "secagg-delivery",
        "config",
        (
            Field("senders", "bytes", "places, 4 bytes each, ascending", size=4, **_FEW),
            Field("sealed", "bytes", "their shares for this device", size=SEALED_BYTES, **_FEW),
        ),
    )

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""
        return {"senders": _packed(self.senders), "sealed": b"".join(self.sealed)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Delivery":
        """Read fields of the declared form."""
        senders = _ascending(fields["senders"], "secagg-delivery")
        sealed = _items(fields["sealed"], SEALED_BYTES)
        if len(senders) != len(sealed):
            raise ValueError("secagg-delivery: expected one share of each sender")
        return cls(senders, sealed)


@dataclass(frozen=True)
class MaskedVector:
    """A device's noised vector under its masks: to whoever lacks them, random bytes."""

    data: bytes

    FORM: ClassVar = RecordForm(
        "secagg-masked",
        "config",
        (
            Field(
                "vector",
                "bytes",
                "the noised statistics under masks, modulo 2^64",
                size=NUMBER_BYTES,
                least=4,
                most=MAX_LENGTH,
            ),
        ),
    )

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""
        return {"vector": self.data}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "MaskedVector":
        """Read fields of the declared form."""
        return cls(fields["vector"])


@dataclass(frozen=True)
class Survivors:
    """Who is in the sum.

    Attributes
    ----------
    total : int
        Devices in the sum.
    survived : tuple of int
        Neighbours in the sum, ascending: the seeds of their own masks are opened.
    dropped : tuple of int
        Neighbours that dropped out after they had dealt: their mask keys are opened.
    """

    total: int
    survived: tuple[int, ...]
    dropped: tuple[int, ...]

    FORM: ClassVar = RecordForm(
        "secagg-survivors",
        "config",
        (
            Field("total", "int", "devices in the sum", FEWEST_DEVICES, MOST_DEVICES),
            Field("survived", "bytes", "neighbours in the sum, 4 bytes each", size=4, **_FEW),
            Field("dropped", "bytes", "neighbours that dropped out", size=4, **_ANY),
        ),
    )

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""
        return {
            "total": self.total,
            "survived": _packed(self.survived),
            "dropped": _packed(self.dropped),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Survivors":
        """Read fields of the declared form."""
        survived = _ascending(fields["survived"], "secagg-survivors")
        dropped = _ascending(fields["dropped"], "secagg-survivors")
        if set(survived) & set(dropped):
            raise ValueError("secagg-survivors: expected nobody in both lists")
        return cls(fields["total"], survived, dropped)


@dataclass(frozen=True)
class Revealed:
    """The shares that a device opens, in the order of the survivors' lists.

    Of each neighbour it is one or the other; ``NO_SHARE`` where the sealed one could not be opened.
    """

    seed_shares: tuple[bytes, ...]
    key_shares: tuple[bytes, ...]

    FORM: ClassVar = RecordForm(
        "secagg-revealed",
        "config",
        (
            Field("seed-shares", "bytes", "of those in the sum", size=SHARE_BYTES, **_FEW),
            Field("key-shares", "bytes", "of those that dropped out", size=SHARE_BYTES, **_ANY),
        ),
    )

    def fields(self) -> dict[str, Any]:
        """Return the record's fields."""
        return {
            "seed-shares": b"".join(self.seed_shares),
            "key-shares": b"".join(self.key_shares),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Revealed":
        """Read fields of the declared form."""
        return cls(
            _items(fields["seed-shares"], SHARE_BYTES), _items(fields["key-shares"], SHARE_BYTES)
        )


SESSION_FORM = RecordForm(
    "session",
    "config",
    (
        Field("run", "int", "Flower's number of the run", 0, 2**63 - 1),
        Field("nonce", "bytes", "random, by the server, for one sum", size=NONCE_BYTES),
        Field("noise-multiplier", "float", "noise of the sum over its sensitivity", 1e-3, 1e6),
    ),
)

REQUESTS: dict[str, type[Body] | None] = {
    KEYS: None,
    SHARES: Roster,
    MASKED: Delivery,
    UNMASK: Survivors,
}
REPLIES: dict[str, type[Body]] = {
    KEYS: DeviceKeys,
    SHARES: Dealt,
    MASKED: MaskedVector,
    UNMASK: Revealed,
}


def request_forms(message_type: str) -> tuple[RecordForm, ...]:
    """Return the forms of the records that ask for a stage."""
    body = REQUESTS[message_type]
    return (ROUND_FORM, SESSION_FORM, *((body.FORM,) if body else ()))


def request_content(session: Session, body: Body | None = None) -> RecordDict:
    """Return the content that asks a device for a stage."""
    content = RecordDict(
        {
            ROUND_FORM.name: round_to_record(session.release),
            SESSION_FORM.name: ConfigRecord(
                {
                    "run": session.run,
                    "nonce": session.nonce,
                    "noise-multiplier": session.noise_multiplier,
                }
            ),
        }
    )
    if body is not None:
        content[body.FORM.name] = ConfigRecord(body.fields())
    return content


def read_request(message_type: str, content: RecordDict) -> tuple[Session, Body | None]:
    """Return the session and what a stage's request says.

    Raises
    ------
    ProtocolError
        If the content is anything but such a request.
    """
    release = read_round(content)
    wanted = REQUESTS[message_type]
    record = content.get(SESSION_FORM.name)
    fault = fault_of_names(content, request_forms(message_type)) or fault_of(record, SESSION_FORM)
    if fault is not None:
        raise ProtocolError(fault)
    assert isinstance(record, ConfigRecord)
    session = Session(
        record["run"],  # type: ignore[arg-type]
        release,
        record["nonce"],  # type: ignore[arg-type]
        record["noise-multiplier"],  # type: ignore[arg-type]
    )
    if wanted is None:
        return session, None
    try:
        return session, _read_body(content[wanted.FORM.name], wanted)
    except ValueError as error:
        raise ProtocolError(str(error)) from error


def reply_content(body: Body) -> RecordDict:
    """Return the content that answers a stage."""
    return RecordDict({body.FORM.name: ConfigRecord(body.fields())})


def read_reply(message_type: str, content: RecordDict) -> Body:
    """Return what an answer to a stage says.

    Raises
    ------
    ReplyError
        If the content is anything but such an answer.
    """
    wanted = REPLIES[message_type]
    fault = fault_of_names(content, (wanted.FORM,))
    if fault is not None:
        raise ReplyError(fault)
    try:
        return _read_body(content[wanted.FORM.name], wanted)
    except ValueError as error:
        raise ReplyError(str(error)) from error


def _read_body(record: object, wanted: type[Body]) -> Body:
    fault = fault_of(record, wanted.FORM)
    if fault is not None:
        raise ValueError(fault)
    assert isinstance(record, ConfigRecord)
    return wanted.from_fields(record)


def _packed(places: Sequence[int]) -> bytes:
    return b"".join(place.to_bytes(_INDEX_BYTES, "big") for place in places)


def _ascending(data: bytes, record: str) -> tuple[int, ...]:
    places = tuple(int.from_bytes(item, "big") for item in _items(data, _INDEX_BYTES))
    if any(a >= b for a, b in pairwise(places)) or (places and places[-1] >= MOST_DEVICES):
        raise ValueError(f"{record}: expected places in ascending order")
    return places


def _items(data: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(data[start : start + size] for start in range(0, len(data), size))
