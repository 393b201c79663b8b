"""The device: installs once, refuses what is not right, and learns from its history alone."""

import json
import math
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

import client.device
from client.device import Device
from client.simulated import open_simulated
from client.vault import Vault
from shared.base_model import BaseModel
from shared.corpus.user import Query, User
from shared.embedding import embed_user
from shared.errors import MesofedError
from shared.lora.algebra import base_weights, merged, scale
from shared.methods import METHODS
from shared.protocol import RouterStatistics, statistics_from_record, statistics_to_record
from shared.release import Release
from shared.retrieval import Examples, query_prompt
from shared.samples import Sample, answer_room, encode, encode_prompt
from shared.tasks import TASKS


@pytest.fixture
def newcomer(federation: Any, base: BaseModel, tmp_path: Path) -> Callable[..., Device]:
    """Return a device whose person has just moved in."""

    def make(user: User, name: str = "vault", methods: tuple[str, ...] = ()) -> Device:
        vault = Vault(tmp_path / name)
        vault.trust(federation.server_key)
        vault.move_in(user)
        config = federation.config
        return Device(base, vault, methods or config.methods, config.private, config.seed)

    return make


@pytest.fixture
def settled(federation: Any, base: BaseModel, tmp_path: Path) -> Device:
    """A device of the federation as it was at the end, to be changed at will."""
    shutil.copytree(federation.run_dir / "vaults" / "0001", tmp_path / "settled")
    config = federation.config
    return Device(base, Vault(tmp_path / "settled"), config.methods, config.private, config.seed)


def settle(device: Device, files: Mapping[str, bytes]) -> int:
    """Install a release and personalise, as the ClientApp does."""
    version = device.install(files)
    device.personalise()
    return version


def private_files(folder: Path, version: int) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "private" / f"r{version}").iterdir()}


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def private_tensors(folder: Path, version: int) -> dict[str, bytes]:
    """Without the logs, which tell seconds."""
    files = private_files(folder, version)
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


# Installing


def test_the_same_person_alone_gets_the_same_private_bytes(
    federation: Any, newcomer: Callable[..., Device]
) -> None:
    for index in (0, 2):
        device = newcomer(federation.people.device[index], f"alone-{index}")
        assert settle(device, federation.release_files(1)) == 1
        there = federation.run_dir / "vaults" / f"{index:04d}"
        alone = private_tensors(device.vault.folder, 1)
        assert alone == private_tensors(there, 1)
        assert set(alone) == {"oppu.safetensors", "meso-tuned.safetensors"}


def test_two_people_get_different_private_bytes(federation: Any) -> None:
    first, second = (federation.run_dir / "vaults" / f"{index:04d}" for index in (0, 1))
    for name, data in private_tensors(first, 1).items():
        assert data != private_tensors(second, 1)[name]


def test_installing_twice_trains_once(
    federation: Any, settled: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = private_files(settled.vault.folder, 2)

    def refuse(*args: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(client.device, "begin_personalising", refuse)
    monkeypatch.setattr(client.device, "embed_user", refuse)
    assert settle(settled, federation.release_files(2)) == 2
    assert private_files(settled.vault.folder, 2) == before
    # Without one method's log it is not finished, and only it is trained.
    (settled.vault.folder / "private" / "r2" / "oppu.json").unlink()
    with pytest.raises(AssertionError, match="trained again"):
        settle(settled, federation.release_files(2))


def test_a_method_that_was_cut_short_is_trained_to_the_same_bytes(
    federation: Any, settled: Device
) -> None:
    before = private_tensors(settled.vault.folder, 2)
    (settled.vault.folder / "private" / "r2" / "oppu.json").unlink()
    (settled.vault.folder / "private" / "r2" / "oppu.safetensors").write_bytes(b"half")
    settle(settled, federation.release_files(2))
    assert private_tensors(settled.vault.folder, 2) == before


def lone(device: Device, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What a device trains in an empty vault."""
    folder = device.vault.folder.with_name(f"{device.vault.folder.name}-lone")
    shutil.rmtree(folder, ignore_errors=True)
    fresh = replace(device, vault=Vault(folder))
    fresh.vault.trust(device.vault.trusted())
    fresh.vault.move_in(device.vault.person())
    return private_tensors(folder, settle(fresh, files))


def test_what_is_computed_in_another_precision_is_not_taken_for_the_same(settled: Device) -> None:
    def settings(kind: str, dtype: torch.dtype) -> str:
        changed = replace(settled, base=replace(settled.base, format=kind, dtype=dtype))
        return changed.settings_of("oppu")

    kinds = [("fp32", torch.float32), ("bf16", torch.bfloat16)]
    kinds += [(kind, dtype) for kind in ("int8", "nf4") for _, dtype in kinds]
    assert len({settings(*kind) for kind in kinds}) == len(kinds) == 6


def test_what_a_method_says_of_itself_is_no_setting(
    settled: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, before = METHODS["oppu"], settled.settings_of("oppu")
    monkeypatch.setitem(METHODS, "oppu", replace(method, summary="in other words"))
    assert settled.settings_of("oppu") == before
    for changed in (replace(method, rank=3), replace(method, maps=("v_proj",)), METHODS["meso"]):
        monkeypatch.setitem(METHODS, "oppu", changed)
        assert settled.settings_of("oppu") != before


def test_other_settings_train_anew_and_are_never_taken_for_each_other(
    federation: Any, settled: Device
) -> None:
    files, before = federation.release_files(2), private_tensors(settled.vault.folder, 2)
    private = settled.private
    for changed in (
        replace(settled, private=private.model_copy(update={"epochs": private.epochs + 1})),
        replace(settled, seed=settled.seed + 1),
        replace(settled, base=replace(settled.base, max_tokens=24)),
    ):
        with pytest.raises(MesofedError, match="under other settings"):
            changed.personalised("oppu")
        settle(changed, files)
        found = private_tensors(settled.vault.folder, 2)
        assert found["oppu.safetensors"] != before["oppu.safetensors"]
        assert found == lone(changed, files)
        assert changed.personalised("oppu").private is not None
        with pytest.raises(MesofedError, match="under other settings"):
            settled.personalised("oppu")
    settle(settled, files)
    assert private_tensors(settled.vault.folder, 2) == before
    # One of each is kept, however often the settings change.
    assert len(private_files(settled.vault.folder, 2)) == 4
    assert len(list((settled.vault.folder / "embedding").iterdir())) == 1


def test_fewer_tokens_give_another_embedding(settled: Device) -> None:
    settled.prepare()
    shorter = replace(settled, base=replace(settled.base, max_tokens=24))
    shorter.prepare()
    (path,) = (settled.vault.folder / "embedding").iterdir()
    found = settled.vault.load_embedding(path.stem)
    expected = embed_user(shorter.base, settled.vault.person().history)
    assert found is not None
    assert torch.equal(found, expected)
    assert not torch.equal(found, embed_user(settled.base, settled.vault.person().history))


def flipped(files: dict[str, bytes]) -> dict[str, bytes]:
    data = bytearray(files["population.safetensors"])
    data[-3] ^= 1
    return {**files, "population.safetensors": bytes(data)}


def another_base(files: dict[str, bytes]) -> dict[str, bytes]:
    manifest = json.loads(files["manifest.json"])
    manifest["base"]["fingerprint"] = "0" * 64
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def unsigned(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != "manifest.sig"}


def without_a_file(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != "bank.safetensors"}


def with_one_more(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, "extra.json": b"{}"}


def nothing(files: dict[str, bytes]) -> dict[str, bytes]:
    return {}


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (flipped, "the hash differs"),
        (another_base, "Expected a release for this base model"),
        (without_a_file, "lack or add"),
        (with_one_more, "lack or add"),
    ],
)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "as it was signed"])
def test_a_wrong_release_is_refused_and_the_last_good_one_kept(
    tamper: Callable[..., dict[str, bytes]],
    said: str,
    signed: bool,
    federation: Any,
    newcomer: Callable[..., Device],
) -> None:
    device = newcomer(federation.people.device[0], methods=("population",))
    settle(device, federation.release_files(1))
    before = all_files(device.vault.folder)
    wrong = tamper(federation.release_files(2))
    if signed:
        wrong = federation.signed_files(wrong)
    elif tamper is another_base:
        said = "changed after it was signed"
    with pytest.raises(MesofedError, match=said):
        settle(device, wrong)
    assert all_files(device.vault.folder) == before
    assert device.statistics().release == 1


@pytest.mark.parametrize("tamper", [unsigned, nothing])
def test_a_release_without_a_signature_is_refused(
    tamper: Callable[..., dict[str, bytes]], federation: Any, newcomer: Callable[..., Device]
) -> None:
    device = newcomer(federation.people.device[0], methods=("population",))
    with pytest.raises(MesofedError, match=r"Expected a signed release.*got none"):
        device.install(tamper(federation.release_files(2)))
    assert device.vault.installed() is None


def older(release: Release) -> Release:
    return replace(release, version=1)


def cooler(release: Release) -> Release:
    return replace(release, temperature=2 * release.temperature)


def other_population(release: Release) -> Release:
    return replace(release, population=scale(release.population, 1.5))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (older, "got release 1. "),
        (cooler, "got release 2 with other contents. "),
        (other_population, "got release 2 with other contents. "),
    ],
)
def test_an_older_release_and_another_of_the_same_version_are_refused(
    change: Callable[[Release], Release],
    reason: str,
    federation: Any,
    settled: Device,
    base: BaseModel,
) -> None:
    statistics = settled.statistics()
    before = all_files(settled.vault.folder)
    other = federation.signed(change(federation.release(2, base)))
    with pytest.raises(MesofedError) as refused:
        settle(settled, other)
    assert "Expected a release newer than 2, or the very same; " + reason in str(refused.value)
    assert all_files(settled.vault.folder) == before
    assert settled.statistics() == statistics
    # Nothing is wrong with these files themselves: whoever has nothing yet, takes them.
    assert settled.vault.installed() == 2
    shutil.rmtree(settled.vault.folder / "private")
    (settled.vault.folder / "installed.json").unlink()
    assert settle(settled, other) == (1 if change is older else 2)


def test_the_release_of_the_round_before_is_refused(federation: Any, settled: Device) -> None:
    before = all_files(settled.vault.folder)
    with pytest.raises(MesofedError, match=r"newer than 2, or the very same; got release 1\."):
        settle(settled, federation.release_files(1))
    assert all_files(settled.vault.folder) == before


def test_the_very_same_release_changes_nothing_and_mends_the_vault(
    federation: Any, settled: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = all_files(settled.vault.folder)
    assert settle(settled, federation.release_files(2)) == 2
    assert all_files(settled.vault.folder) == before
    path = settled.vault.folder / "releases" / "r2" / "router.safetensors"
    statistics = settled.statistics()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    # The process holds the release as it was verified; no changed file gets into it.
    assert settled.statistics() == statistics
    monkeypatch.setattr(client.device, "_last", None)  # as in a process that begins
    with pytest.raises(MesofedError, match="not what its manifest names"):
        settled.statistics()
    assert settle(settled, federation.release_files(2)) == 2
    assert all_files(settled.vault.folder) == before


# Many threads


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Start all works at one moment, each on a thread of its own; return their results."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


@pytest.fixture
def _threads_take_turns_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_on_many_threads_devices_get_what_they_get_one_after_another(
    federation: Any, newcomer: Callable[..., Device], settled: Device
) -> None:
    people = federation.people.device
    alone = [newcomer(user, f"alone-{index}") for index, user in enumerate(people)]
    together = [newcomer(user, f"together-{index}") for index, user in enumerate(people)]
    reads = [
        partial(settled.evaluate, "oppu"),
        partial(settled.evaluate, "meso-tuned"),
        partial(settled.answer, "meso-tuned", "post: a day\nheadline:", 8),
        settled.statistics,
    ]
    read = [work() for work in reads]
    for version in (1, 2):
        files = federation.release_files(version)
        assert [settle(device, files) for device in alone] == [version] * 3
        statistics = [device.statistics() for device in alone]
        # Every device is asked twice, as by a server that lost the first answer.
        installs = [partial(settle, device, files) for device in together * 2]
        assert at_once([*installs, *reads]) == [*[version] * 6, *read]
        assert at_once([*reads, *(d.statistics for d in together)]) == [*read, *statistics]
    for one, other in zip(alone, together, strict=True):
        for version in (1, 2):
            private = private_tensors(other.vault.folder, version)
            assert private == private_tensors(one.vault.folder, version)
            assert set(private) == {"oppu.safetensors", "meso-tuned.safetensors"}


# Statistics


def test_statistics_follow_from_the_history_by_hand(
    federation: Any, settled: Device, base: BaseModel
) -> None:
    user = federation.people.device[1]
    means = []
    for item in user.history:
        task = TASKS[item.task]
        room = answer_room(base, task, task.history_labels)
        sample = encode(base, task.history_prompt(item), item.target, room)
        ids = torch.tensor([[*sample.prompt, *sample.answer][:-1]])
        with torch.no_grad():
            means.append(base.model.model(input_ids=ids).last_hidden_state[0].double().mean(0))
    embedding = torch.stack(means).mean(0)
    parts = load(federation.release_files(2)["router.safetensors"])
    place = (embedding - parts["space.mean"].double()) @ parts["space.basis"].double()
    place = place / place.norm()
    logits = place @ parts["router.weight"].double() + parts["router.bias"].double()
    experts = (logits.exp() / logits.exp().sum()).tolist()
    cosines = (parts["anchors"].double() @ place).tolist()
    nearest = sorted(range(3), key=lambda i: -cosines[i])[:2]
    scores = [math.exp(cosines[i] / federation.config.bank.temperature) for i in nearest]
    anchors = [0.0, 0.0, 0.0]
    for index, score in zip(nearest, scores, strict=True):
        anchors[index] = score / sum(scores)
    entropy = -sum(p * math.log(p) for p in experts) / math.log(2)

    came = settled.statistics()
    assert came.release == 2
    assert came.expert_weights == pytest.approx(experts, abs=2e-4)
    assert came.anchor_weights == pytest.approx(anchors, abs=2e-4)
    assert came.best_similarity == pytest.approx(max(cosines), abs=2e-4)
    assert came.entropy == pytest.approx(entropy, abs=2e-4)


def test_what_is_sent_can_be_read_in_the_vault_and_on_the_server(
    federation: Any, settled: Device
) -> None:
    statistics = settled.statistics()
    kept = settled.vault.statistics(2)
    assert kept is not None
    assert (
        RouterStatistics(**{k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()})
        == statistics
    )
    sent = statistics_from_record(statistics_to_record(statistics), 2, 3)
    record = json.loads((federation.run_dir / "statistics" / "r2.json").read_text())
    (received,) = (d["statistics"] for d in record["devices"] if d["node"] == 2)
    assert received["expert_weights"] == list(sent.expert_weights)
    assert received["anchor_weights"] == list(sent.anchor_weights)
    assert sent.expert_weights == pytest.approx(statistics.expert_weights, abs=1e-4)


# What training may read


def test_queries_never_enter_private_training(
    federation: Any, newcomer: Callable[..., Device]
) -> None:
    user = federation.people.device[0]
    poison = tuple(
        replace(
            query, text="poison " + query.text[::-1], gold="gear" if query.gold != "gear" else "1"
        )
        for query in user.queries
    )
    files = federation.release_files(1)
    asked = newcomer(replace(user, queries=poison), "poisoned")
    silent = newcomer(replace(user, queries=()), "silent")
    settle(asked, files)
    settle(silent, files)
    expected = private_tensors(federation.run_dir / "vaults" / "0000", 1)
    assert private_tensors(asked.vault.folder, 1) == expected
    assert private_tensors(silent.vault.folder, 1) == expected
    assert asked.statistics() == silent.statistics()


def test_the_group_is_not_read_and_the_history_is(
    federation: Any, newcomer: Callable[..., Device]
) -> None:
    user = federation.people.device[0]
    files = federation.release_files(1)
    other_group = newcomer(replace(user, group=None), "no-group")
    settle(other_group, files)
    expected = private_tensors(federation.run_dir / "vaults" / "0000", 1)
    assert private_tensors(other_group.vault.folder, 1) == expected
    changed = replace(user.history[0], text=user.history[0].text[::-1])
    other_past = newcomer(replace(user, history=(changed, *user.history[1:])), "other-past")
    settle(other_past, files)
    for name, data in private_tensors(other_past.vault.folder, 1).items():
        assert data != expected[name], name


# Evaluating


def test_evaluation_is_what_one_finds_by_hand(
    federation: Any, settled: Device, base: BaseModel
) -> None:
    user = federation.people.device[1]
    for method in ("oppu", "meso-tuned"):
        tensors = load_file(settled.vault.folder / "private" / "r2" / f"{method}.safetensors")
        result = settled.evaluate(method)
        assert result["private_bytes"] == 4 * result["private_parameters"]
        lora = sum(t.numel() for name, t in tensors.items() if name != "weights")
        asked = {query.task for query in user.queries}
        counts = sum(len(TASKS[task].history_labels or ()) for task in asked)
        more = 4 + counts if method == "meso-tuned" else 0  # weights and label counts
        assert result["private_parameters"] == lora + more
        assert len(result["curve"]) == math.ceil(
            len(user.history) / federation.config.private.batch_size
        )
        folded = settled.personalised(method).folded()
        assert folded is not None
        answered = {answer["query_id"]: answer for answer in result["queries"]}
        assert set(answered) == {query.query_id for query in user.queries}
        weights = base_weights(base.model, [m.name for m in base.maps])
        with merged(weights, folded):
            for query in user.queries:
                answer = answered[query.query_id]
                assert (answer["task"], answer["gold"]) == (query.task, query.gold)
                assert answer["nll"] == pytest.approx(nll(base, query), rel=2e-3)
                if method == "oppu":  # the label prior has tests of its own
                    assert answer["prediction"] == predicted(base, query)
        for task, scores in result["scores"].items():
            own = [a for a in result["queries"] if a["task"] == task]
            hits = [a["prediction"] == a["gold"] for a in own]
            if task == "tagging":
                assert scores["accuracy"] == pytest.approx(sum(hits) / len(hits))
            if task == "rating":
                errors = [abs(int(a["prediction"]) - int(a["gold"])) for a in own]
                assert scores["mae"] == pytest.approx(sum(errors) / len(errors))
        assert set(result["scores"]) == {query.task for query in user.queries}


def test_a_release_with_examples_is_learnt_and_asked_with_own_items_alone(
    federation: Any, newcomer: Callable[..., Device], base: BaseModel
) -> None:
    plain = federation.release(1, base)
    files = federation.signed(replace(plain, examples=Examples(1, 64)))
    user = federation.people.device[1]
    device = newcomer(user, methods=("oppu",))
    settle(device, files)
    wide = replace(base, max_tokens=base.max_tokens + 200)
    # The first item has nothing before it, so it is the only one that is learnt as it was.
    first = newcomer(replace(user, history=user.history[:1]), "first", ("oppu",))
    settle(first, files)
    same = newcomer(replace(user, history=user.history[:1]), "same", ("oppu",))
    settle(same, federation.release_files(1))
    one, other = (private_tensors(d.vault.folder, 1) for d in (first, same))
    assert one == other
    assert private_tensors(device.vault.folder, 1) != private_tensors(
        federation.run_dir / "vaults" / "0001", 1
    )
    result, stack = device.evaluate("oppu"), device.personalised("oppu")
    answered = {answer["query_id"]: answer for answer in result["queries"]}
    folded = stack.folded()
    assert folded is not None
    with merged(base_weights(base.model, [m.name for m in base.maps]), folded):
        for query in user.queries:
            room = answer_room(base, TASKS[query.task], TASKS[query.task].labels)
            prompt = query_prompt(base, user, query, Examples(1, 64))
            own = [i for i in user.history if i.task == query.task]
            assert prompt.count("\n\n") >= min(1, len(own))
            asked = encode(wide, prompt, query.gold, room)
            assert answered[query.query_id]["nll"] == pytest.approx(loss(base, asked), rel=2e-3)


def test_a_typed_prompt_has_own_items_before_it_if_it_is_put_as_such_a_query(
    federation: Any, newcomer: Callable[..., Device], base: BaseModel
) -> None:
    examples = Examples(1, 64, ("headline",))
    files = federation.signed(replace(federation.release(1, base), examples=examples))
    user = federation.people.device[1]
    device = newcomer(user, methods=("oppu",))
    settle(device, files)
    headlines = [query for query in user.queries if query.task == "headline"]
    for query in headlines:
        prompt = TASKS["headline"].query_prompt(query)
        for count in (8, 60):  # more than half of max_tokens, which cuts the question no further
            with device_reads() as read:
                device.answer("oppu", prompt, count)
            ((shown, ids),) = read
            assert shown == query_prompt(base, user, query, examples)
            assert base.tokenizer.decode(ids) == shown
    assert headlines
    for other in ("tell me a joke", "post: a walk\ntag:"):
        with device_reads() as read:
            device.answer("oppu", other, 8)
        assert [shown for shown, _ in read] == [other]


@contextmanager
def device_reads() -> Iterator[list[tuple[str, list[int]]]]:
    """Collect the prompts that devices continue meanwhile, and the tokens they are cut to."""
    read: list[tuple[str, list[int]]] = []
    generate = client.device.generate

    def noted(base: BaseModel, parts: Any, prompts: Any, count: int, room: int) -> Any:
        for prompt in prompts[0]:
            read.append((prompt, list(encode_prompt(base, prompt, room))))
        return generate(base, parts, prompts, count, room)

    client.device.generate = noted
    try:
        yield read
    finally:
        client.device.generate = generate


def nll(base: BaseModel, query: Query) -> float:
    room = answer_room(base, TASKS[query.task], TASKS[query.task].labels)
    return loss(base, encode(base, TASKS[query.task].query_prompt(query), query.gold, room))


def loss(base: BaseModel, sample: Sample) -> float:
    ids = torch.tensor([[*sample.prompt, *sample.answer]])
    labels = ids.clone()
    labels[0, : len(sample.prompt)] = -100
    with torch.no_grad():
        return float(base.model(input_ids=ids, labels=labels).loss)


def predicted(base: BaseModel, query: Query) -> str:
    """Decode greedily; among the labels where the task has them."""
    task = TASKS[query.task]
    room = answer_room(base, task, task.labels)
    ids = list(encode_prompt(base, task.query_prompt(query), room))
    end, start, labels = base.tokenizer.eos_token_id, len(ids), task.labels
    spelled = [[*base.tokenizer.encode(f" {label}"), end] for label in labels or ()]
    while len(ids) - start < room and end not in ids[start:]:
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([ids])).logits[0, -1]
        done = ids[start:]
        allowed = [s[len(done)] for s in spelled if s[: len(done)] == done]
        ids.append(max(allowed or range(len(logits)), key=lambda token: float(logits[token])))
    return str(base.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def test_what_the_simulation_wrote_is_what_the_device_says(
    federation: Any, settled: Device
) -> None:
    written = json.loads((federation.run_dir / "results" / "0001.json").read_text())
    for method, expected in written["methods"].items():
        came = json.loads(json.dumps(settled.evaluate(method)))
        # The simulation evaluates several devices in one batch: other sums, the same answers.
        losses = [answer.pop("nll") for answer in came["queries"]]
        assert losses == pytest.approx(
            [answer.pop("nll") for answer in expected["queries"]], abs=1e-5
        )
        assert came == expected
    assert written["statistics"] == settled.vault.statistics(2)


def test_a_method_that_is_unknown_or_not_trained_is_an_error(settled: Device) -> None:
    with pytest.raises(MesofedError, match=r"Expected one of base, .*got method 'oppo'"):
        settled.personalised("oppo")
    with pytest.raises(
        MesofedError, match=r"mta-exact to be trained .* The settings name population, oppu"
    ):
        settled.evaluate("mta-exact")
    declared = replace(settled, methods=("mta-exact",))
    with pytest.raises(MesofedError, match=r"it is not yet\. `\S*mesofed device start` trains it"):
        declared.personalised("mta-exact")
    assert settled.personalised("experts").private is None  # needs no training


# Opening


def test_a_node_of_a_simulation_is_the_person_of_its_partition(
    federation: Any, device_context: Any, tmp_path: Path
) -> None:
    shutil.copy(federation.run_dir / "config.toml", tmp_path / "config.toml")
    shutil.copytree(federation.run_dir / "keys", tmp_path / "keys")
    for index in (2, 0):
        context = device_context(tmp_path, **{"partition-id": index, "num-partitions": 3})
        device = open_simulated(context)
        assert device.vault.folder == tmp_path / "vaults" / f"{index:04d}"
        assert device.vault.person() == federation.people.device[index]
    with pytest.raises(MesofedError, match=r"below 3, the number of device users; got 3"):
        open_simulated(device_context(tmp_path, **{"partition-id": 3, "num-partitions": 4}))
