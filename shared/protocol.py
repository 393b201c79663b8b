"""Releases and router statistics as records.

    down   train.install_release     "release" {file name: bytes}, "round" {protocol, release}
    up     (nothing: the empty content says that the release is installed)
    down   query.router_statistics   "round" {protocol, release}
    up     "router-statistics" {release, expert-weights, anchor-weights, best-similarity, entropy}
    down   query.noised_statistics   "round", "noise" {noise-multiplier}
    up     "noised-statistics" {release, vector}

``secure_aggregation/messages.py`` has the rest, and ``wire.py`` the table of all messages. Both
sides build and read records only there. A record that is not exactly of its form is refused with a
fixed reason: a reason never repeats what came, since what came may be private (on the way up) or
hostile (on both ways).
"""

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from shared.config import MAX_ANCHORS, MAX_EXPERTS
from shared.errors import MesofedError
from shared.record_form import Field, Files, RecordForm, fault_of, fault_of_names

PROTOCOL = 2
"""Version of all records; both sides refuse any other."""

INSTALL_RELEASE = "train.install_release"
ROUTER_STATISTICS = "query.router_statistics"
NOISED_STATISTICS = "query.noised_statistics"

MAX_FILES = 256
MAX_RELEASE_BYTES = 1 << 30
MAX_RELEASE = 2**31 - 1
MAX_LENGTH = MAX_EXPERTS + MAX_ANCHORS + 2
MAX_NOISED = 2**40
"""Of the size of a noised number, which a server narrows by the noise that it asked for."""
FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.(json|safetensors|sig)")
DECIMALS = 4
"""Decimals of every number that goes up: enough to steer by, too few to smuggle much."""
SUM_TOLERANCE = 1e-3

_UNITS = 10**DECIMALS
_NPY_HEADER_BYTES = 128

ROUND_FORM = RecordForm(
    "round",
    "config",
    (
        Field("protocol", "int", "version of the records", PROTOCOL, PROTOCOL),
        Field("release", "int", "the release that the request is about", 1, MAX_RELEASE),
    ),
)
RELEASE_FORM = RecordForm(
    "release", "array", Files(FILE_NAME, MAX_FILES, "the signed files of a release")
)
_RELEASE_FIELD = Field("release", "int", "the installed release", 1, MAX_RELEASE)
STATISTICS_FORM = RecordForm(
    "router-statistics",
    "metric",
    (
        _RELEASE_FIELD,
        Field("expert-weights", "floats", "of each group expert; sum 1", 0, 1, 1, MAX_EXPERTS),
        Field("anchor-weights", "floats", "of each anchor; sum 1", 0, 1, 1, MAX_ANCHORS),
        Field("best-similarity", "float", "to the nearest anchor", -1, 1),
        Field("entropy", "float", "of the expert weights over log E", 0, 1),
    ),
)
NOISE_FORM = RecordForm(
    "noise",
    "config",
    (Field("noise-multiplier", "float", "standard deviation over sensitivity", 1e-3, 1e6),),
)
NOISED_FORM = RecordForm(
    "noised-statistics",
    "metric",
    (
        _RELEASE_FIELD,
        Field(
            "vector",
            "ints",
            "the statistics as whole numbers, with the noise",
            -MAX_NOISED,
            MAX_NOISED,
            4,
            MAX_LENGTH,
        ),
    ),
)


class Refusal(IntEnum):
    """Why a device answers with an error. Flower's own codes stay below 100."""

    OTHER_PROTOCOL = 100
    MALFORMED_REQUEST = 101
    UNKNOWN_REQUEST = 102
    REQUEST_REFUSED = 110
    OTHER_RELEASE = 111
    OTHER_PRIVACY = 112
    BUDGET_SPENT = 113
    DEVICE_FAILED = 120
    REPLY_BLOCKED = 121
    NO_AGENT = 122


REASONS: dict[Refusal, str] = {
    Refusal.OTHER_PROTOCOL: (
        "the device speaks another protocol version: update the older side, device or server"
    ),
    Refusal.MALFORMED_REQUEST: "the request does not have the form that the protocol declares",
    Refusal.UNKNOWN_REQUEST: "the device does not know this request",
    Refusal.REQUEST_REFUSED: "the device refused the request; its own log says why",
    Refusal.OTHER_RELEASE: "the device does not hold the release that it was asked about",
    Refusal.OTHER_PRIVACY: "the device's own privacy mode answers no such question",
    Refusal.BUDGET_SPENT: "the device's privacy budget does not allow this answer",
    Refusal.DEVICE_FAILED: "the device failed; its own log says why",
    Refusal.REPLY_BLOCKED: "the device held back its reply: not what the protocol allows",
    Refusal.NO_AGENT: "the device's agent could not be asked or did not answer; its log says why",
}


class ProtocolError(MesofedError):
    """A record that is not what the protocol declares.

    Parameters
    ----------
    reason : str
        Fixed text; it never holds a value that came.
    refusal : Refusal
        The code under which a device answers with it.
    """

    def __init__(self, reason: str, refusal: Refusal = Refusal.MALFORMED_REQUEST) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refusal = refusal


class ReplyError(ProtocolError):
    """An answer that is not what the protocol declares."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, Refusal.REPLY_BLOCKED)


def refusal_of(error: BaseException) -> Refusal:
    """Return the code under which a device tells of an error, whatever its text says."""
    if isinstance(error, ProtocolError):
        return error.refusal
    if isinstance(error, MesofedError):
        return Refusal.REQUEST_REFUSED
    return Refusal.DEVICE_FAILED


@dataclass(frozen=True)
class RouterStatistics:
    """How one device's router uses a release: the only thing that a device sends.

    Attributes
    ----------
    release : int
        The installed release, counted from 1.
    expert_weights : tuple of float, length E
        Weight of each group expert, in [0, 1], summing to 1.
    anchor_weights : tuple of float, length M
        Fusion weight of each anchor, in [0, 1], summing to 1.
    best_similarity : float
        Similarity to the nearest anchor, in [-1, 1].
    entropy : float
        Entropy of ``expert_weights`` divided by log E, in [0, 1].
    """

    release: int
    expert_weights: tuple[float, ...]
    anchor_weights: tuple[float, ...]
    best_similarity: float
    entropy: float


# The round: which protocol and which release a request is about.


def round_to_record(release: int) -> ConfigRecord:
    """Return the record that heads every request."""
    return ConfigRecord({"protocol": PROTOCOL, "release": release})


def read_round(content: RecordDict) -> int:
    """Return the release that a request is about.

    Raises
    ------
    ProtocolError
        If the request is of another protocol version, or its round is malformed.
    """
    record = content.get(ROUND_FORM.name)
    # The version goes first: another one may have other fields.
    version = record.get("protocol") if isinstance(record, ConfigRecord) else None
    if type(version) is int and version != PROTOCOL:
        raise ProtocolError(REASONS[Refusal.OTHER_PROTOCOL], Refusal.OTHER_PROTOCOL)
    fault = fault_of(record, ROUND_FORM)
    if fault is not None:
        raise ProtocolError(fault)
    assert isinstance(record, ConfigRecord)
    release = record["release"]
    assert isinstance(release, int)
    return release


# Down: a release.


def release_to_content(files: Mapping[str, bytes], release: int) -> RecordDict:
    """Return the content that brings a release to a device.

    Raises
    ------
    ProtocolError
        If a device would refuse it: a file name, the number of files or their size.
    """
    _check_files({name: len(data) for name, data in files.items()})
    arrays = {name: Array(np.frombuffer(files[name], dtype=np.uint8)) for name in sorted(files)}
    return RecordDict(
        {ROUND_FORM.name: round_to_record(release), RELEASE_FORM.name: ArrayRecord(arrays)}
    )


def release_from_content(content: RecordDict) -> tuple[int, dict[str, bytes]]:
    """Return the version and the files of the release that a request brings.

    Raises
    ------
    ProtocolError
        If the content is anything but a release of this protocol within its limits.
    """
    release = read_round(content)
    record = content.get(RELEASE_FORM.name)
    if fault_of_names(content, (ROUND_FORM, RELEASE_FORM)) or not isinstance(record, ArrayRecord):
        raise ProtocolError("the request does not bring one release")
    _check_files({name: len(array.data) - _NPY_HEADER_BYTES for name, array in record.items()})
    return release, {name: _file_from_array(array) for name, array in record.items()}


def _file_from_array(array: Array) -> bytes:
    """Take a file out of its array by its one possible header; nothing that came is parsed."""
    size = len(array.data) - _NPY_HEADER_BYTES
    if (array.dtype, array.shape, array.stype) != ("uint8", (size,), "numpy.ndarray"):
        raise ProtocolError("a release file is not a flat array of bytes")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (size,)}
    )
    if not array.data.startswith(header.getvalue()):
        raise ProtocolError("a release file is not what its array says")
    return array.data[_NPY_HEADER_BYTES:]


def _check_files(sizes: Mapping[str, int]) -> None:
    if not 1 <= len(sizes) <= MAX_FILES:
        raise ProtocolError(f"a release has 1 to {MAX_FILES} files")
    if not all(FILE_NAME.fullmatch(name) for name in sizes):
        raise ProtocolError("a release file has a name that the protocol does not allow")
    if not all(size > 0 for size in sizes.values()) or sum(sizes.values()) > MAX_RELEASE_BYTES:
        raise ProtocolError(f"a release has no empty file and at most {MAX_RELEASE_BYTES} bytes")


# Down: the question for the statistics.


def statistics_request(release: int) -> RecordDict:
    """Return the content that asks a device for its router statistics."""
    return RecordDict({ROUND_FORM.name: round_to_record(release)})


def read_statistics_request(content: RecordDict) -> int:
    """Return the release that the statistics are asked for.

    Raises
    ------
    ProtocolError
        If the content is anything but such a question.
    """
    release = read_round(content)
    if fault_of_names(content, (ROUND_FORM,)):
        raise ProtocolError("the question for router statistics carries more than its round")
    return release


# Up: the statistics.


def statistics_to_record(statistics: RouterStatistics) -> MetricRecord:
    """Return the record that a device sends: bounded, and rounded to four decimals.

    Weights are rounded by largest remainder, so that they still sum to one.

    Raises
    ------
    ReplyError
        If the statistics are out of bounds; nothing is clipped into shape here.
    """
    _check_statistics(statistics)
    return MetricRecord(
        {
            "release": int(statistics.release),
            "expert-weights": _round_shares(statistics.expert_weights),
            "anchor-weights": _round_shares(statistics.anchor_weights),
            "best-similarity": round(float(statistics.best_similarity), DECIMALS),
            "entropy": round(float(statistics.entropy), DECIMALS),
        }
    )


def statistics_from_record(
    record: object, experts: int | None = None, anchors: int | None = None
) -> RouterStatistics:
    """Read router statistics, exactly as declared or not at all.

    Parameters
    ----------
    record : object
        What came under the statistics' name.
    experts, anchors : int or None
        E and M of the release, where they are known.

    Raises
    ------
    ReplyError
        If the record is of another type, has other fields, lengths, types or bounds.
    """
    fault = fault_of(record, STATISTICS_FORM)
    if fault is not None:
        raise ReplyError(fault)
    values: Mapping[str, Any] = record  # type: ignore[assignment]  # its form was checked
    statistics = RouterStatistics(
        values["release"],
        tuple(values["expert-weights"]),
        tuple(values["anchor-weights"]),
        values["best-similarity"],
        values["entropy"],
    )
    _check_statistics(statistics)
    if experts is not None and len(statistics.expert_weights) != experts:
        raise ReplyError("router statistics have another number of experts than the release")
    if anchors is not None and len(statistics.anchor_weights) != anchors:
        raise ReplyError("router statistics have another number of anchors than the release")
    return statistics


def as_sent(statistics: RouterStatistics) -> RouterStatistics:
    """Return the statistics as the server will read them, to keep a true copy of what is sent.

    Raises
    ------
    ReplyError
        If the statistics are out of bounds.
    """
    return statistics_from_record(statistics_to_record(statistics))


def statistics_to_content(statistics: RouterStatistics) -> RecordDict:
    """Return the whole content of a device's answer."""
    return RecordDict({STATISTICS_FORM.name: statistics_to_record(statistics)})


def statistics_from_content(
    content: RecordDict, experts: int | None = None, anchors: int | None = None
) -> RouterStatistics:
    """Read a device's answer; see ``statistics_from_record``.

    Raises
    ------
    ReplyError
        If the content holds anything but router statistics.
    """
    fault = fault_of_names(content, (STATISTICS_FORM,))
    if fault is not None:
        raise ReplyError(fault)
    return statistics_from_record(content[STATISTICS_FORM.name], experts, anchors)


# Noised statistics: the question and the answer.


@dataclass(frozen=True)
class NoisedStatistics:
    """A device's statistics under noise of its own.

    Attributes
    ----------
    release : int
    vector : tuple of int, (E + M + 2,)
        As ``shared.statistic_vector`` encodes them, plus noise.
    """

    release: int
    vector: tuple[int, ...]


def noised_request(release: int, noise_multiplier: float) -> RecordDict:
    """Return the content that asks a device for noised statistics."""
    return RecordDict(
        {
            ROUND_FORM.name: round_to_record(release),
            NOISE_FORM.name: ConfigRecord({"noise-multiplier": noise_multiplier}),
        }
    )


def read_noised_request(content: RecordDict) -> tuple[int, float]:
    """Return the release and the noise multiplier that are asked for.

    Raises
    ------
    ProtocolError
        If the content is anything but such a question.
    """
    release = read_round(content)
    record = content.get(NOISE_FORM.name)
    fault = fault_of_names(content, (ROUND_FORM, NOISE_FORM)) or fault_of(record, NOISE_FORM)
    if fault is not None:
        raise ProtocolError(fault)
    assert isinstance(record, ConfigRecord)
    multiplier = record["noise-multiplier"]
    assert isinstance(multiplier, float)
    return release, multiplier


def noised_to_content(statistics: NoisedStatistics) -> RecordDict:
    """Return the content of a device's noised answer."""
    record = MetricRecord({"release": statistics.release, "vector": list(statistics.vector)})
    return RecordDict({NOISED_FORM.name: record})


def noised_from_content(content: RecordDict) -> NoisedStatistics:
    """Read a device's noised answer.

    Raises
    ------
    ReplyError
        If the content is anything but noised statistics.
    """
    record = content.get(NOISED_FORM.name)
    fault = fault_of_names(content, (NOISED_FORM,)) or fault_of(record, NOISED_FORM)
    if fault is not None:
        raise ReplyError(fault)
    values: Mapping[str, Any] = record  # type: ignore[assignment]  # its form was checked
    return NoisedStatistics(values["release"], tuple(values["vector"]))


def acknowledgement_from_content(content: RecordDict) -> None:
    """Read a device's answer to a release: it must be empty.

    Raises
    ------
    ReplyError
        If it is not.
    """
    if content:
        raise ReplyError("the acknowledgement is not empty")


def _check_statistics(statistics: RouterStatistics) -> None:
    if type(statistics.release) is not int or not 1 <= statistics.release <= MAX_RELEASE:
        raise ReplyError("router statistics do not name a release")
    for weights, most in (
        (statistics.expert_weights, MAX_EXPERTS),
        (statistics.anchor_weights, MAX_ANCHORS),
    ):
        if not 1 <= len(weights) <= most:
            raise ReplyError(f"router statistics have 1 to {most} weights of this kind")
        # A comparison with NaN is false, so NaN is refused here too.
        if not all(0.0 <= weight <= 1.0 for weight in weights):
            raise ReplyError("router statistics have a weight outside [0, 1]")
        if not abs(math.fsum(weights) - 1.0) <= SUM_TOLERANCE:
            raise ReplyError("router statistics have weights that do not sum to 1")
    if not -1.0 <= statistics.best_similarity <= 1.0:
        raise ReplyError("router statistics have a similarity outside [-1, 1]")
    if not 0.0 <= statistics.entropy <= 1.0:
        raise ReplyError("router statistics have an entropy outside [0, 1]")


def _round_shares(weights: tuple[float, ...]) -> list[float]:
    """Round shares to whole units of 1e-4 that sum to exactly 10,000 units (largest remainder)."""
    total = math.fsum(weights)
    exact = [_UNITS * float(weight) / total for weight in weights]
    units = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (units[i] - exact[i], i))
    for i in by_remainder[: _UNITS - sum(units)]:
        units[i] += 1
    return [unit / _UNITS for unit in units]
