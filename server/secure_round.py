"""A secure sum of the devices' statistics: four exchanges, and a file between them.

    keys -> shares -> masked -> unmask        sums/r<k>.json holds what has come so far

A server that is killed goes on where it was: devices answer the same question with the same bytes,
and would not join a second sum.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from flwr.app import RecordDict
from flwr.serverapp import Grid

from server.exchange import Exchange, exchange
from server.refusals import QuorumError, Refused, log_refused
from shared.atomic_file import write_bytes
from shared.errors import MesofedError
from shared.secure_aggregation.messages import (
    KEYS,
    MASKED,
    SHARES,
    UNMASK,
    Body,
    Dealt,
    DeviceKeys,
    MaskedVector,
    Revealed,
    Session,
    read_reply,
    request_content,
)
from shared.secure_aggregation.server_session import Opened, ServerSession

WRONG_SHARE = "the device opened another share than it was dealt"
LOST = "too few neighbours could open the device's secrets; the sum is lost with them"

Said = TypeVar("Said", bound=Body)


@dataclass(frozen=True)
class SecureSum:
    """What came of a secure sum.

    Attributes
    ----------
    opened : Opened
    needed, joined : int
        Devices that the session needed, and that were in it: each one's noise is a share for both.
    refused : tuple of Refused
        Of all stages, those before the server was killed and went on too.
    bytes_down, bytes_up : dict of int to int
        Of the stages that this process went through, by node id.
    stray : int
        Replies to no message, in these stages.
    """

    opened: Opened
    needed: int
    joined: int
    refused: tuple[Refused, ...]
    bytes_down: dict[int, int]
    bytes_up: dict[int, int]
    stray: int = 0


def gather_sum(
    grid: Grid,
    file: Path,
    start: Callable[[], ServerSession],
    *,
    nodes: Sequence[int],
    deadline_seconds: float,
    on_reply: Callable[[int], None] | None = None,
) -> SecureSum:
    """Gather the sum of the devices' noised statistics, and nothing else of them.

    Parameters
    ----------
    file : Path
        Where the session waits if this process ends; the caller deletes it with the sum safe.
    start : callable
        Makes a new session, where there is none in the file.
    nodes : sequence of int
        The devices to ask.
    deadline_seconds : float
        For each of the four stages.
    on_reply : callable, optional
        Called in the last stage with the number of devices done.

    Raises
    ------
    QuorumError
        If fewer devices than the session needs answer a stage; the run can be resumed.
    """
    state = ServerSession.from_bytes(file.read_bytes()) if file.exists() else start()
    heard: list[Exchange[Body]] = []

    def keep(state: ServerSession) -> ServerSession:
        write_bytes(file, state.to_bytes())
        return state

    def ask(
        message_type: str,
        asked: Sequence[int],
        body: Callable[[int], Body | None],
        check: Callable[[int, Body], None],
        needed: int,
    ) -> Mapping[int, Body]:
        def read(node: int, content: RecordDict) -> Body:
            answer = read_reply(message_type, content)
            check(node, answer)
            return answer

        try:
            found = exchange(
                grid,
                _purpose(message_type, state),
                message_type,
                lambda node: request_content(state.session, body(node)),
                read,
                nodes=asked,
                needed=needed,
                deadline_seconds=deadline_seconds,
                on_reply=on_reply if message_type == UNMASK else None,
            )
        except QuorumError as missed:
            raise missed.after(_refused(state)) from None
        heard.append(found)
        return found.answers

    def refuse(state: ServerSession, odd: Mapping[int, str] | None = None) -> ServerSession:
        """Take what was refused in the stage that is over into the state, which is kept."""
        entries = [(entry.node, entry.reason) for entry in heard[-1].refused]
        return replace(state, refused=(*state.refused, *entries, *(odd or {}).items()))

    keep(state)
    if not state.nodes:
        keys = ask(KEYS, nodes, lambda node: None, lambda node, said: None, state.needed)
        try:
            state, odd = state.advertise(_as(keys, DeviceKeys))
        except MesofedError as error:
            raise QuorumError(
                str(error),
                needed=state.needed,
                asked=len(nodes),
                answered=len(keys),
                refused=heard[-1].refused,
            ) from None
        log_refused(_purpose(KEYS, state), [Refused(*entry) for entry in odd.items()])
        state = keep(refuse(state, odd))
    if not state.dealt:
        dealt = ask(
            SHARES,
            state.nodes,
            state.roster,
            lambda node, said: state.check_dealt(node, cast("Dealt", said)),
            state.needed,
        )
        state = keep(refuse(state.deal(_as(dealt, Dealt))))
    if not state.masked:
        ready = state.ready()
        if len(ready) < state.needed:
            raise QuorumError(
                f"Expected {state.needed} devices with enough neighbours in the secure sum; "
                f"{len(ready)} have. Delete {file} and resume the run: a new sum begins.",
                needed=state.needed,
                asked=len(state.nodes),
                answered=len(ready),
                refused=_refused(state),
            )
        masked = ask(
            MASKED,
            ready,
            state.delivery,
            lambda node, said: state.check_masked(cast("MaskedVector", said)),
            state.needed,
        )
        state = keep(refuse(state.mask(_as(masked, MaskedVector))))
    able = state.summed()
    revealed = ask(
        UNMASK,
        able,
        state.survivors,
        lambda node, said: state.check_revealed(node, cast("Revealed", said)),
        min(state.needed, len(able)),
    )
    opened = state.open(_as(revealed, Revealed))
    odd = {**dict.fromkeys(opened.wrong, WRONG_SHARE), **dict.fromkeys(opened.lost, LOST)}
    log_refused(_purpose(UNMASK, state), [Refused(*entry) for entry in odd.items()])
    refused = _refused(refuse(state, odd))
    return SecureSum(
        opened,
        state.needed,
        len(state.nodes),
        tuple(sorted(refused, key=lambda entry: entry.node)),
        _total([found.bytes_down for found in heard]),
        _total([found.bytes_up for found in heard]),
        sum(found.stray for found in heard),
    )


def new_session(
    run: int, release: int, noise_multiplier: float, *, needed: int, length: int
) -> ServerSession:
    """Return a session that no other is like."""
    return ServerSession(
        Session(run % 2**63, release, secrets.token_bytes(32), noise_multiplier), needed, length
    )


def _purpose(message_type: str, state: ServerSession) -> str:
    return f"answer {message_type} of release {state.session.release}"


def _refused(state: ServerSession) -> list[Refused]:
    return [Refused(node, reason) for node, reason in state.refused]


def _as(answers: Mapping[int, Body], kind: type[Said]) -> dict[int, Said]:
    """Return the answers of a stage, which ``read_reply`` made of this kind."""
    return {node: answer for node, answer in answers.items() if isinstance(answer, kind)}


def _total(counts: Sequence[Mapping[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for by_node in counts:
        for node, count in by_node.items():
            total[node] = total.get(node, 0) + count
    return total
