"""What the audit takes for seen is what crossed the wire; in a secure sum it is nobody's.

A journal that tells less than what crossed the wire is found out, whoever sent the rest.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client import app as honest_app
from client import boundary, secure_sum
from client.egress import egress_guard
from client.inspection import sent
from client.sent import Sent
from client.vault import Vault
from shared.config import RunConfig
from shared.flower_internals import message_from_bytes, message_to_bytes
from shared.privacy import calibrate
from shared.protocol import (
    NoisedStatistics,
    RouterStatistics,
    noised_to_content,
    statistics_to_content,
)
from shared.run_settings import partition, vault_folder
from shared.secure_aggregation import masks
from shared.statistic_vector import UNITS, decode_mean, encode
from shared.wire import MESSAGES
from simulations.audit import federations
from simulations.audit.federations import (
    Ground,
    PeopleRun,
    lay_ground,
    run_people,
    vault_folder_of,
)
from simulations.audit.inference import measure_inference
from simulations.audit.sent_statistics import Seen, look_at, sent_vectors

Runs = Callable[[str], PeopleRun]
Grounds = Callable[[str], Ground]


def record_of(run: Path) -> Any:
    return json.loads((run / "statistics" / "r1.json").read_text(encoding="utf-8"))


def before_noise(run: Path, devices: int) -> list[RouterStatistics]:
    return [statistics_in(Vault(vault_folder_of(run, device))) for device in range(devices)]


def statistics_in(vault: Vault) -> RouterStatistics:
    kept: Any = vault.statistics(1)
    return RouterStatistics(
        1,
        tuple(kept["expert_weights"]),
        tuple(kept["anchor_weights"]),
        kept["best_similarity"],
        kept["entropy"],
    )


def seen_of(people: PeopleRun, mode: str, **found: Any) -> Seen:
    """What is seen of honest devices, but for their noise and what a test names."""
    alone = 0 if mode == "central" else people.devices
    nothing = {"several": 0, "bare": 0, "untold": 0, "unheard": 0, "sum": None, "noise": None}
    return Seen(mode, people.devices, **{"single": alone, **nothing, **found})


def test_in_mode_off_it_is_what_the_server_wrote_down(people_runs: Runs) -> None:
    people = people_runs("off")
    vectors = sent_vectors(people)
    # The local engine's device d is node d + 1.
    for entry in record_of(people.run)["devices"]:
        statistics = RouterStatistics(**entry["statistics"])
        assert vectors[entry["node"] - 1] * UNITS == pytest.approx(encode(statistics))
    seen = look_at(people, "off")
    assert replace(seen, noise=None) == seen_of(people, "off", bare=people.devices)
    assert seen.failures == ()


def test_in_mode_local_it_is_with_the_noise(people_runs: Runs) -> None:
    people = people_runs("local")
    run, devices = people.run, people.devices
    vectors = sent_vectors(people)
    total = [round(number * UNITS) for number in np.sum(vectors, axis=0)]
    own = before_noise(run, devices)
    mean = decode_mean(total, devices, len(own[0].expert_weights))
    record = record_of(run)
    assert record["mean"]["expert_weights"] == pytest.approx(list(mean.expert_weights))
    assert record["mean"]["anchor_weights"] == pytest.approx(list(mean.anchor_weights))
    # The noise itself: its size over all devices is what the round's record says of it.
    noise = np.concatenate(
        [v - np.array(encode(o)) / UNITS for v, o in zip(vectors, own, strict=True)]
    )
    declared = record["privacy"]["noise_of_mean"] * devices**0.5
    assert 0.6 * declared < noise.std() < 1.5 * declared
    seen = look_at(people, "local")
    assert replace(seen, noise=None) == seen_of(people, "local")
    assert seen.failures == ()


def test_noise_that_is_missing_fails_the_audit(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "local_vector", lambda statistics, *_: encode(statistics))
    people = run_people(own_ground("local"))
    seen = look_at(people, "local")
    # The journals tell as much: they are in order, and the devices are not.
    assert replace(seen, noise=None) == seen_of(people, "local", bare=people.devices)
    assert seen.failures[0] == f"{people.devices} devices sent statistics without noise"
    assert seen.noise is not None
    assert seen.noise.measured == 0
    assert seen.noise.too_small


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize(
    ("mode", "where", "name"),
    [("local", boundary, "local_vector"), ("central", secure_sum, "noised_vector")],
)
def test_noise_that_is_too_small_fails_the_audit(
    own_ground: Grounds,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    where: Any,
    name: str,
    share: float,
) -> None:
    """As a device would send it that takes the wrong multiplier, or draws none."""
    whole = getattr(where, name)

    def part(statistics: RouterStatistics, *how: Any) -> list[int]:
        own, noised = encode(statistics), whole(statistics, *how)
        return [o + round(share * (n - o)) for o, n in zip(own, noised, strict=True)]

    monkeypatch.setattr(where, name, part)
    seen = look_at(run_people(own_ground(mode)), mode)
    assert seen.noise is not None
    assert seen.noise.too_small
    assert any(failure.startswith("the noise on what was sent has") for failure in seen.failures)


@pytest.mark.parametrize("mode", ["local", "central"])
def test_noise_as_it_should_be_is_told_apart_from_that(people_runs: Runs, mode: str) -> None:
    people = people_runs(mode)
    noise = look_at(people, mode).noise
    assert noise is not None
    assert not noise.too_small
    own = before_noise(people.run, people.devices)
    assert noise.numbers == people.devices * len(encode(own[0]))
    declared = record_of(people.run)["privacy"]["noise_of_mean"] * people.devices**0.5
    assert noise.declared == pytest.approx(declared, rel=1e-3)
    assert 0.6 * noise.declared < noise.measured < 1.5 * noise.declared


@pytest.mark.parametrize("masked", [[0], [0, 1, 2], None])
def test_a_vector_that_is_masked_in_part_can_be_read_alone(
    people_runs: Runs, masked: list[int] | None
) -> None:
    """Masked at these places alone, or everywhere by the same number."""
    people = people_runs("central")
    place, reply = next(
        (i, r) for i, r in enumerate(people.left) if r.request == "query.secagg_masked"
    )
    message = message_from_bytes(reply.data)
    record: Any
    (record,) = message.content.values()
    ring = masks.to_ring(encode(before_noise(people.run, 1)[0]))
    hidden = np.zeros(len(ring), dtype=np.uint64)
    hidden[slice(None) if masked is None else masked] = 2**63 + 12345
    record["vector"] = masks.to_bytes(ring + hidden)
    left = [*people.left]
    left[place] = replace(reply, data=message_to_bytes(message))
    assert look_at(replace(people, left=tuple(left)), "central").single == 1


def test_a_sum_of_other_vectors_than_the_vaults_had_fails_the_audit(people_runs: Runs) -> None:
    people = people_runs("central")
    (first, *rest), told = people.under_masks[0], dict(people.under_masks)
    for under in ({**told, 0: (first + UNITS, *rest)}, {}):
        seen = look_at(replace(people, under_masks=under), "central")
        assert seen.noise is None
        assert seen.failures == ("what devices put under noise cannot be told from what was sent",)


def test_in_mode_central_there_is_the_sum_alone(grounds: Grounds, people_runs: Runs) -> None:
    people = people_runs("central")
    devices, record = people.devices, record_of(people.run)
    # Masked vectors have crossed the wire, so there was something to read.
    masked = [reply for reply in people.left if reply.request == "query.secagg_masked"]
    assert sorted(reply.device for reply in masked) == list(range(devices))
    assert {reply.kind for reply in masked} == {"answer"}
    seen = look_at(people, "central")
    assert replace(seen, noise=None) == seen_of(people, "central", sum=seen.sum)
    assert seen.failures == ()
    assert seen.sum is not None
    assert seen.sum.devices == record["answered"] == devices
    assert list(seen.sum.expert_weights or ()) == record["mean"]["expert_weights"]
    truth = np.mean([own.expert_weights for own in before_noise(people.run, devices)], axis=0)
    assert seen.sum.true_expert_weights == pytest.approx(tuple(truth))
    assert seen.sum.noise_of_mean == record["privacy"]["noise_of_mean"] > 0
    with pytest.raises(RuntimeError, match="have sent no statistics"):
        sent_vectors(people)
    targets = {attack.target for attack in measure_inference(grounds("central"), people)}
    assert targets == {
        "meta-LoRA bank",
        "anchors' places",
        "population LoRA",
        "uploads of fedavg-lora",
    }


@pytest.mark.parametrize("mode", ["off", "local", "central"])
def test_wire_and_journals_tell_the_same_of_every_message(people_runs: Runs, mode: str) -> None:
    people = people_runs(mode)
    asked = sorted(message.type for message in MESSAGES if mode in message.modes)
    for device in range(people.devices):
        crossed = [reply for reply in people.left if reply.device == device]
        assert sorted(reply.request for reply in crossed) == asked
        journal = list(sent(Vault(vault_folder_of(people.run, device))))
        assert sorted(entry["request"] for entry in journal) == asked
        for entry in journal:
            (reply,) = (reply for reply in crossed if reply.request == entry["request"])
            assert entry["bytes"] in reply.data
    # Releases went down to all of them, and the tap keeps none.
    release = sum(path.stat().st_size for path in (people.run / "releases" / "r1").iterdir())
    assert sum(len(reply.data) for reply in people.left) < release


def test_a_journal_that_forgets_is_found_out(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Sent.add

    def forgetful(journal: Sent, entry: Any) -> None:
        first = journal.journal.path.parent.name == "0000"
        if not (first and entry["request"] == "query.router_statistics"):
            add(journal, entry)

    monkeypatch.setattr(Sent, "add", forgetful)
    people = run_people(own_ground("off"))
    seen = look_at(people, "off")
    assert replace(seen, noise=None) == seen_of(people, "off", bare=people.devices, untold=1)
    assert seen.failures == ("1 device sent what is not in the journal",)


def test_what_was_sent_twice_is_not_in_a_journal_that_has_it_once(people_runs: Runs) -> None:
    people = people_runs("local")
    again = replace(people, left=(*people.left, people.left[-1]))
    assert replace(look_at(again, "local"), noise=None) == seen_of(people, "local", untold=1)


def test_a_tap_that_missed_an_answer_fails_the_audit(people_runs: Runs) -> None:
    """Else nothing heard would pass for nothing sent."""
    people = people_runs("central")
    deaf = look_at(replace(people, left=()), "central")
    assert (deaf.single, deaf.unheard) == (0, people.devices)
    assert deaf.failures == (
        f"{people.devices} devices put into the journal what never crossed the wire",
    )


def test_two_answers_about_one_release_fail_the_audit(people_runs: Runs) -> None:
    people = people_runs("local")
    other = next(r for r in people.left if r.device == 1 and r.request.endswith("statistics"))
    seen = look_at(replace(people, left=(*people.left, replace(other, device=0))), "local")
    assert replace(seen, noise=None) == seen_of(people, "local", several=1, untold=1)
    assert "1 device sent different statistics of one release" in seen.failures


def app_of(answer: Callable[[Message, Message, Vault], Message], *mods: Any) -> ClientApp:
    """An app whose first device answers otherwise than its agent, and its journal, would have it.

    Parameters
    ----------
    answer : callable
        What is made of the request, the honest reply and the vault.
    """
    app = ClientApp(mods=list(mods))

    def handled(honest: Callable[[Message, Context], Message]) -> Any:
        def handler(message: Message, context: Context) -> Message:
            reply = honest(message, context)
            return (
                answer(message, reply, Vault(vault_folder(context)))
                if partition(context) == 0
                else reply
            )

        return handler

    for message in MESSAGES:
        action, name = message.type.split(".")
        getattr(app, action)(name)(handled(getattr(honest_app, name)))
    return app


def test_bare_numbers_in_place_of_noised_ones_are_found_behind_the_guard(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the form that the guard lets out, and the journal has the noised ones."""

    def without_noise(request: Message, reply: Message, vault: Vault) -> Message:
        if request.metadata.message_type != "query.noised_statistics":
            return reply
        bare = NoisedStatistics(1, tuple(encode(statistics_in(vault))))
        return Message(noised_to_content(bare), reply_to=request)

    monkeypatch.setattr(federations, "client_app", app_of(without_noise, egress_guard))
    people = run_people(own_ground("local"))
    seen = look_at(people, "local")
    # What the journal has never crossed the wire, and what did is not in the journal.
    assert replace(seen, noise=None) == seen_of(people, "local", bare=1, untold=1, unheard=1)
    assert "1 device sent statistics without noise" in seen.failures
    assert "1 device sent what is not in the journal" in seen.failures
    # The attacks are on what the server got.
    (own,) = before_noise(people.run, 1)
    assert (sent_vectors(people)[0] * UNITS).tolist() == pytest.approx(encode(own))


def test_statistics_beside_a_masked_vector_are_found_under_any_name(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def telling(request: Message, reply: Message, vault: Vault) -> Message:
        if request.metadata.message_type == "query.secagg_masked":
            (record,) = statistics_to_content(statistics_in(vault)).values()
            reply.content["harmless"] = record
        return reply

    monkeypatch.setattr(federations, "client_app", app_of(telling))
    people = run_people(own_ground("central"))
    seen = look_at(people, "central")
    assert replace(seen, noise=None) == seen_of(
        people, "central", single=1, bare=1, untold=1, unheard=1, sum=seen.sum
    )
    assert "1 device sent statistics that can be read alone" in seen.failures
    assert "1 device sent what is not in the journal" in seen.failures


def test_an_error_in_words_of_its_own_is_in_no_journal(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complaining(request: Message, reply: Message, vault: Vault) -> Message:
        if request.metadata.message_type != "query.router_statistics":
            return reply
        return Message(Error(1, str(statistics_in(vault))), reply_to=request)

    monkeypatch.setattr(federations, "client_app", app_of(complaining))
    people = run_people(own_ground("off"))
    assert look_at(people, "off").untold == 1


def test_the_noise_is_that_of_a_round_of_the_run(audit_config: RunConfig, tmp_path: Path) -> None:
    """The audit runs one round, of a budget for three, and of fewer devices than a sum may need."""
    privacy = audit_config.privacy.model_copy(update={"mode": "central", "minimum_devices": 50})
    rounds = audit_config.rounds.model_copy(update={"count": 3})
    ground = lay_ground(
        audit_config.model_copy(update={"privacy": privacy, "rounds": rounds}), tmp_path
    )
    record = record_of(run_people(ground).run)
    assert record["answered"] == len(ground.devices) < 50
    wanted = calibrate(privacy.epsilon, privacy.delta, 3)
    assert wanted > 1.5 * calibrate(privacy.epsilon, privacy.delta, 1)
    assert record["privacy"]["noise_multiplier"] == pytest.approx(wanted, rel=1e-6)


def test_masks_that_hide_nothing_fail_the_audit(
    own_ground: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(key: bytes, length: int) -> masks.Ring:
        return np.zeros(length, dtype=np.uint64)

    monkeypatch.setattr(masks, "mask", bare)
    people = run_people(own_ground("central"))
    seen = look_at(people, "central")
    assert (seen.single, seen.untold, seen.unheard) == (people.devices, 0, 0)
    assert seen.failures == (f"{people.devices} devices sent statistics that can be read alone",)
    assert replace(seen, single=0).failures == ()
