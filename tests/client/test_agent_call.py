"""Frames between shim and agent: what is no frame, or too large a one, is refused and not kept."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client.agent_call import (
    LENGTH,
    MAX_CONTENT,
    MAX_HEADER,
    FrameError,
    ask_agent,
    receive_frame,
    send_frame,
)
from shared.errors import MesofedError
from shared.flower_internals import content_to_bytes
from shared.protocol import (
    REASONS,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    statistics_request,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    one.settimeout(5)
    other.settimeout(5)
    with one, other:
        yield one, other


def receive(data: bytes) -> object:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        other.settimeout(5)
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        return receive_frame(other)


def framed(header: object, content: bytes = b"") -> bytes:
    data = json.dumps(header).encode()
    return LENGTH.pack(len(data)) + data + content


def test_a_frame_is_laid_out_as_documented(ends: tuple[socket.socket, socket.socket]) -> None:
    send_frame(ends[0], {"request": "x"}, b"content")
    expected = b'{"request": "x", "bytes": 7}'
    data = ends[1].recv(1000)
    assert data == len(expected).to_bytes(4, "big") + expected + b"content"


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=4),
    st.binary(max_size=3000),
)
def test_a_frame_is_received_as_it_was_sent(header: dict[str, object], content: bytes) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        send_frame(one, header, content)
        frame = receive_frame(other)
    assert frame.content == content
    assert frame.header == {**header, "bytes": len(content)}


def test_a_frame_that_comes_in_pieces_is_one_frame(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    data, content = framed({"bytes": 3_000_000}, bytes(3_000_000)), bytes(3_000_000)

    def send() -> None:
        for start in range(0, 40):
            ends[0].sendall(data[start : start + 1])
        ends[0].sendall(data[40:])

    sender = threading.Thread(target=send)
    sender.start()
    assert receive_frame(ends[1]).content == content
    sender.join()


BAD = {
    "nothing": b"",
    "half a length": b"\0\0",
    "a long header": LENGTH.pack(MAX_HEADER + 1) + b" " * (MAX_HEADER + 1),
    "the longest header": LENGTH.pack(2**32 - 1),
    "a header cut short": LENGTH.pack(50) + b'{"bytes": 0}',
    "no JSON": LENGTH.pack(3) + b"{x}",
    "no UTF-8": LENGTH.pack(2) + b"\xff\xfe",
    "deep JSON": LENGTH.pack(1000) + b"[" * 1000,
    "a list": framed([1]),
    "a number": framed(7),
    "no size": framed({"request": "x"}),
    "a negative size": framed({"bytes": -1}),
    "a broken size": framed({"bytes": 1.0}, b"x"),
    "a size of words": framed({"bytes": "1"}, b"x"),
    "a true size": framed({"bytes": True}, b"x"),
    "too large a size": framed({"bytes": MAX_CONTENT + 1}),
    "an endless size": framed({"bytes": 10**300}),
    "content cut short": framed({"bytes": 10}, b"123456789"),
    "a large promise": framed({"bytes": MAX_CONTENT}, b"little"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_frame_is_refused(kind: str) -> None:
    with pytest.raises(FrameError):
        receive(BAD[kind])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_comes_is_a_frame_or_refused(data: bytes) -> None:
    try:
        receive(data)
    except FrameError:
        return
    length = int.from_bytes(data[:4], "big")
    assert json.loads(data[4 : 4 + length])["bytes"] <= len(data) - 4 - length


def test_a_large_promise_costs_no_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(FrameError):
        receive(BAD["a large promise"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


# The caller's side


class Answering:
    """A program in the place of the agent that says one thing."""

    def __init__(self, path: Path, reply: bytes) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.reply, self.heard = reply, b""
        self.thread = threading.Thread(target=self._answer)
        self.thread.start()

    def _answer(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            frame = receive_frame(connection)
            self.heard = frame.content
            self.header = frame.header
            connection.sendall(self.reply)
        self.listener.close()


def asked(folder: Path, reply: bytes) -> tuple[Answering, object]:
    peer = Answering(folder / "s", reply)
    try:
        return peer, ask_agent(folder / "s", ROUTER_STATISTICS, statistics_request(3))
    except MesofedError as error:
        return peer, error
    finally:
        peer.thread.join()


def test_a_call_says_the_request_and_nothing_else(short_path: Path) -> None:
    peer, reply = asked(short_path, framed({"code": 0, "bytes": 0}))
    assert reply == RecordDict()
    assert peer.header == {
        "request": ROUTER_STATISTICS,
        "bytes": len(content_to_bytes(statistics_request(3))),
    }
    assert peer.heard == content_to_bytes(statistics_request(3))


@pytest.mark.parametrize("refusal", REASONS)
def test_a_refusal_comes_back_with_its_fixed_text(short_path: Path, refusal: int) -> None:
    _, error = asked(short_path, framed({"code": int(refusal), "bytes": 0}))
    assert isinstance(error, ProtocolError)
    assert (error.refusal, str(error)) == (refusal, REASONS[error.refusal])


@pytest.mark.parametrize(
    "reply",
    [b"hello", framed({"bytes": 0}), framed({"code": "0", "bytes": 0}), framed({"code": 7})],
)
def test_an_answer_that_is_none_ends_in_a_sentence(short_path: Path, reply: bytes) -> None:
    _, error = asked(short_path, reply)
    assert isinstance(error, FrameError)


@pytest.mark.parametrize("reply", [b"", framed({"code": 0, "bytes": 9})[:-1]])
def test_an_agent_that_goes_before_it_has_answered_is_none(short_path: Path, reply: bytes) -> None:
    _, error = asked(short_path, reply)
    assert isinstance(error, ProtocolError)
    assert error.refusal == Refusal.NO_AGENT
    assert "a frame ended early" in "".join(error.__notes__)


def test_without_an_agent_the_caller_says_how_to_start_one(short_path: Path) -> None:
    (short_path / "file").write_bytes(b"")
    for name in ("none", "file", "x" * 200):
        with pytest.raises(ProtocolError) as away:
            ask_agent(short_path / name, ROUTER_STATISTICS, statistics_request(1))
        assert away.value.refusal == Refusal.NO_AGENT
        assert str(away.value) == REASONS[Refusal.NO_AGENT]  # the path is in the notes alone
        (note,) = away.value.__notes__
        assert f"Expected a device agent at {short_path / name}" in note
        assert "mesofed device start" in note
