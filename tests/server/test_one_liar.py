"""What one device that lies can do: to the mean shares in each privacy mode, and to the corpus.

Sixteen devices, four experts that all use alike, a corpus of one user for each. Fifteen tell the
truth, without noise, so that whatever moves is the liar's work.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from server.curation import BOUND, user_weights
from server.exchange import Exchange
from server.round_record import RoundPrivacy, describe_noised, describe_round, describe_sum
from server.rounds import gather_noised, gather_statistics
from server.secure_round import gather_sum, new_session
from shared.config import PrivacyConfig
from shared.privacy import calibrate, honest_devices, noise_variance, share_variance
from shared.protocol import (
    NoisedStatistics,
    RouterStatistics,
    noised_to_content,
    statistics_to_content,
)
from shared.secure_aggregation.device_session import DeviceSession
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SHARES,
    UNMASK,
    read_request,
    reply_content,
)
from shared.statistic_vector import UNITS, encode, influence_bound, noise_bound
from simulations.local_grid import LocalGrid

DEVICES, EXPERTS, LIAR = 16, 4, 7
NODES = tuple(range(1, DEVICES + 1))
HONEST = RouterStatistics(1, (0.25, 0.25, 0.25, 0.25), (1.0, 0.0), 0.5, 1.0)
REST = encode(HONEST)[EXPERTS:]
MULTIPLIER = calibrate(8.0, 1e-5, 1)
VARIANCE = noise_variance(MULTIPLIER)
SHARE = share_variance(MULTIPLIER, honest_devices(8, DEVICES, 0.67))
EDGE = noise_bound(VARIANCE)
COUNTS = influence_bound(VARIANCE)
Answer = Callable[[int], RecordDict]


def installed() -> Exchange[None]:
    nothing = dict.fromkeys(NODES, 0)
    return Exchange(NODES, dict.fromkeys(NODES), (), nothing, nothing)


def devices(stage: str, answer: Answer) -> LocalGrid:
    app = ClientApp()

    @app.query(stage)
    def handle(message: Message, context: Context) -> Message:
        return Message(answer(context.node_id), reply_to=message)

    return LocalGrid(app, DEVICES)


def round_off(lie: tuple[float, ...]) -> Any:
    def answer(node: int) -> RecordDict:
        shares = lie if node == LIAR else HONEST.expert_weights
        return statistics_to_content(RouterStatistics(1, shares, (1.0, 0.0), 0.5, 1.0))

    found = gather_statistics(
        devices("router_statistics", answer),
        1,
        experts=EXPERTS,
        anchors=2,
        nodes=NODES,
        needed=8,
        deadline_seconds=20.0,
    )
    return describe_round(installed(), found)


def round_local(lie: tuple[int, ...]) -> Any:
    def answer(node: int) -> RecordDict:
        vector = (*lie, *REST) if node == LIAR else tuple(encode(HONEST))
        return noised_to_content(NoisedStatistics(1, vector))

    found = gather_noised(
        devices("noised_statistics", answer),
        1,
        MULTIPLIER,
        experts=EXPERTS,
        anchors=2,
        nodes=NODES,
        needed=8,
        deadline_seconds=20.0,
    )
    privacy = RoundPrivacy(PrivacyConfig(mode="local"), MULTIPLIER, VARIANCE, ())
    return describe_noised(installed(), found, EXPERTS, privacy)


def round_central(lie: tuple[int, ...], folder: Path) -> Any:
    sessions: dict[int, Any] = {}
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        node, stage = context.node_id, message.metadata.message_type
        session, body = read_request(stage, message.content)
        state: Any = sessions.setdefault(node, DeviceSession(session, node.to_bytes(32, "big")))
        if stage == KEYS:
            said: Any = state.keys()
        elif stage == SHARES:
            sessions[node], said = state.deal(body, 8)
        elif stage == MASKED:
            vector = [*lie, *REST] if node == LIAR else encode(HONEST)
            sessions[node], said = state.masked(body, vector)
        else:
            sessions[node], said = state.reveal(body)
        return Message(reply_content(said), reply_to=message)

    for stage in (KEYS, SHARES, MASKED, UNMASK):
        app.query(stage.removeprefix("query."))(handle)
    summed = gather_sum(
        LocalGrid(app, DEVICES),
        folder / "r1.json",
        lambda: new_session(1, 1, MULTIPLIER, needed=8, length=EXPERTS + 4),
        nodes=NODES,
        deadline_seconds=20.0,
    )
    privacy = RoundPrivacy(PrivacyConfig(mode="central"), MULTIPLIER, SHARE, ())
    return describe_sum(installed(), summed, EXPERTS, privacy)


def weights_of(record: Any) -> list[float]:
    """Return how much the server's users count after such a round, one user for each expert."""
    mean = torch.tensor(record["mean"]["expert_weights"])
    weights: list[float] = user_weights(torch.eye(EXPERTS), mean).tolist()
    assert min(weights) >= 1 / BOUND - 1e-4
    assert max(weights) <= BOUND + 1e-4
    assert math.fsum(weights) / EXPERTS == pytest.approx(1, abs=1e-4)
    return weights


def test_in_mode_off_a_liar_moves_each_share_by_one_part_in_all_devices() -> None:
    record = round_off((1.0, 0.0, 0.0, 0.0))
    assert (record["answered"], record["refused"]) == (DEVICES, [])
    shares = record["mean"]["expert_weights"]
    assert shares == pytest.approx([0.296875, 0.234375, 0.234375, 0.234375], abs=1e-12)
    assert max(abs(share - 0.25) for share in shares) <= 1 / DEVICES
    # Without the lie every user counts 1.
    assert weights_of(record) == pytest.approx([1.1875, 0.9375, 0.9375, 0.9375], abs=1e-3)


@pytest.mark.parametrize("size", [COUNTS, EDGE - 50])
def test_in_mode_local_a_liar_counts_as_an_honest_device_with_much_noise(size: int) -> None:
    """Noise of eight standard deviations is taken, and counts as three."""
    record = round_local((UNITS + size, -size, -size, -size))
    assert (record["answered"], record["refused"]) == (DEVICES, [])
    # Standard deviation 1.46 of a weight: the liar's numbers count as 1 + 4.4 and -4.4.
    assert abs(COUNTS / UNITS - 4.383) < 0.001
    up, down = (15 * 0.25 + 5.383) / 16, (15 * 0.25 - 4.383) / 16
    off = (1 - up - 3 * down) / 4  # to the simplex
    shares = record["mean"]["expert_weights"]
    assert shares == pytest.approx([up + off, down + off, down + off, down + off], abs=1e-3)
    assert shares[0] == pytest.approx(0.708, abs=1e-3)
    assert weights_of(record) == pytest.approx([2.831, 0.390, 0.390, 0.390], abs=0.005)


def test_in_mode_local_shares_that_sum_to_what_no_noise_makes_are_refused() -> None:
    """Each number within its own bounds; together they sum to 50.8."""
    assert round(4 * (UNITS + EDGE) / UNITS, 1) == 50.8
    record = round_local((UNITS + EDGE,) * 4)
    assert [entry["node"] for entry in record["refused"]] == [LIAR]
    assert record["mean"]["expert_weights"] == pytest.approx([0.25] * 4)
    assert weights_of(record) == pytest.approx([1.0] * 4, abs=1e-4)


NUMBERS = st.lists(st.integers(-EDGE, UNITS + EDGE), min_size=EXPERTS, max_size=EXPERTS)


@settings(deadline=None, max_examples=200)
@given(NUMBERS, NUMBERS)
def test_in_mode_local_no_two_answers_are_farther_apart_than_the_bound(
    one: list[int], other: list[int]
) -> None:
    def mean(lie: list[int]) -> list[float]:
        vectors = {node: tuple(encode(HONEST)) for node in NODES} | {LIAR: (*lie, *REST)}
        answers = {node: NoisedStatistics(1, vector) for node, vector in vectors.items()}
        found = Exchange(NODES, answers, (), dict.fromkeys(NODES, 0), dict.fromkeys(NODES, 0))
        privacy = RoundPrivacy(PrivacyConfig(mode="local"), MULTIPLIER, VARIANCE, ())
        shares: list[float] = describe_noised(installed(), found, EXPERTS, privacy)["mean"][
            "expert_weights"
        ]
        return shares

    bound = math.sqrt(EXPERTS) * (1 + 2 * COUNTS / UNITS) / DEVICES
    assert math.dist(mean(one), mean(other)) <= bound + 1e-9


def test_in_mode_central_a_liar_puts_the_mean_where_it_likes_and_the_corpus_stays_bound(
    tmp_path: Path,
) -> None:
    honest = round_central((2_500,) * 4, tmp_path / "honest")
    assert weights_of(honest) == pytest.approx([1.0] * 4, abs=1e-4)
    lie = (2_500 + 12 * UNITS, *(2_500 - 4 * UNITS,) * 3)
    record = round_central(lie, tmp_path / "lie")
    assert (record["sum"], record["answered"]) == ("taken", DEVICES)
    assert record["mean"]["expert_weights"] == pytest.approx([1.0, 0.0, 0.0, 0.0])
    # Every user would count 4 or 0; the bound makes that 3 and 1 / 3.
    assert weights_of(record) == pytest.approx([3.0, 1 / 3, 1 / 3, 1 / 3], abs=1e-3)


def test_in_mode_central_a_liar_that_adds_more_than_all_could_have_loses_the_sum(
    tmp_path: Path,
) -> None:
    record = round_central((60 * UNITS, 0, 0, 0), tmp_path)
    assert (record["sum"], record["mean"]) == ("implausible", None)
