"""A whole secure sum in one process, for tests to interfere with."""

import random
from dataclasses import dataclass, field

import pytest

from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import Revealed, Session
from shared.secure_aggregation.server_session import Opened, ServerSession

MINIMUM = 3


@dataclass
class SecureRound:
    """Devices 100, 101, ... with random vectors, and a server."""

    devices: int
    length: int = 5
    needed: int = MINIMUM
    seed: int = 1
    release: int = 1
    state: dict[int, DeviceSession] = field(init=False)
    vectors: dict[int, list[int]] = field(init=False)
    server: ServerSession = field(init=False)
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        session = Session(1, self.release, self.rng.randbytes(32), 1.0)
        nodes = range(100, 100 + self.devices)
        self.state = {node: DeviceSession(session, self.rng.randbytes(32)) for node in nodes}
        self.vectors = {
            node: [self.rng.randrange(-5_000, 10_001) for _ in range(self.length)] for node in nodes
        }
        self.server = ServerSession(session, self.needed, self.length)

    def advertise(self) -> None:
        keys = {node: device.keys() for node, device in self.state.items()}
        self.server, refused = self.server.advertise(keys)
        assert not refused

    def deal(self, gone: frozenset[int] = frozenset()) -> None:
        dealt = {}
        for node in sorted(self.state.keys() - gone):
            roster = self.server.roster(node)
            self.state[node], dealt[node] = self.state[node].deal(roster, MINIMUM)
            self.server.check_dealt(node, dealt[node])
        self.server = self.server.deal(dealt)

    def mask(self, gone: frozenset[int] = frozenset()) -> None:
        masked = {}
        for node in self.server.ready():
            if node not in gone:
                self.state[node], masked[node] = self.state[node].masked(
                    self.server.delivery(node), self.vectors[node]
                )
                self.server.check_masked(masked[node])
        self.server = self.server.mask(masked)

    def reveal(self, gone: frozenset[int] = frozenset()) -> dict[int, Revealed]:
        revealed = {}
        for node in self.server.summed():
            if node not in gone:
                self.state[node], revealed[node] = self.state[node].reveal(
                    self.server.survivors(node)
                )
                self.server.check_revealed(node, revealed[node])
        return revealed

    def some(self, count: int) -> frozenset[int]:
        return frozenset(self.rng.sample(sorted(self.state), count))

    def until_masked(self) -> "SecureRound":
        self.advertise()
        self.deal()
        self.mask()
        return self

    def truth(self, opened: Opened) -> tuple[int, ...]:
        return tuple(sum(c) for c in zip(*(self.vectors[n] for n in opened.devices), strict=True))


@pytest.fixture(scope="session")
def secure_round() -> type[SecureRound]:
    """Make a round with ``secure_round(devices)``."""
    return SecureRound
