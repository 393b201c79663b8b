"""A release comes out of its stages, the same whatever was interrupted; the next one listens."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import server.training
from server.training import train_release
from shared.base_model import BaseModel
from shared.corpus.user import User
from shared.errors import MesofedError
from shared.release_files import read_release_files

STAGES = {
    "embedding": "embed_user",
    "population": "train_population",
    "experts": "train_experts",
    "bank": "train_bank",
}


class StageRanError(Exception):
    pass


def refuse(*args: Any, **options: Any) -> Any:
    raise StageRanError


@pytest.fixture
def run(federation: Any, tmp_path: Path) -> Path:
    """A run whose server has trained both releases, to be changed at will."""
    for part in ("keys", "training", "releases", "statistics"):
        shutil.copytree(federation.run_dir / part, tmp_path / part)
    return tmp_path


@pytest.fixture
def train(federation: Any, run: Path) -> Callable[..., dict[str, bytes]]:
    def call(version: int = 1, users: tuple[User, ...] = federation.people.server) -> Any:
        folder = train_release(federation.config, run, version, users)
        assert folder == run / "releases" / f"r{version}"
        return read_release_files(folder)

    return call


def test_a_finished_release_is_not_trained_again(
    train: Any, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in STAGES.values():
        monkeypatch.setattr(server.training, name, refuse)
    assert train() == federation.release_files(1)


def test_a_release_whose_stages_are_finished_is_put_together_from_them(
    train: Any, run: Path, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run / "releases" / "r1")
    for name in STAGES.values():
        monkeypatch.setattr(server.training, name, refuse)
    assert train() == federation.release_files(1)


def test_a_release_without_its_manifest_is_not_there_yet(
    train: Any, run: Path, federation: Any
) -> None:
    folder = run / "releases" / "r1"
    (folder / "manifest.json").unlink()
    (folder / "population.safetensors").write_bytes(b"half of it")
    assert train() == federation.release_files(1)


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_stage_without_its_log_is_trained_again_and_comes_out_the_same(
    stage: str, train: Any, run: Path, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run / "releases" / "r1")
    folder = run / "training" / "r1"
    (folder / f"{stage}.json").unlink()
    (folder / f"{stage}.safetensors").write_bytes(b"half of it")
    for other, name in STAGES.items():
        if other != stage:
            monkeypatch.setattr(server.training, name, refuse)
    assert train() == federation.release_files(1)
    kept = federation.run_dir / "training" / "r1"
    again, first = (
        {k: v for k, v in json.loads((f / f"{stage}.json").read_text()).items() if k != "seconds"}
        for f in (folder, kept)
    )
    assert again == first
    # And the trainer is really called: without it, nothing comes.
    (folder / f"{stage}.json").unlink()
    shutil.rmtree(run / "releases" / "r1")
    monkeypatch.setattr(server.training, STAGES[stage], refuse)
    with pytest.raises(StageRanError):
        train()


def test_training_never_reads_the_users_groups(train: Any, run: Path, federation: Any) -> None:
    people = federation.people.server
    assert {user.group for user in people} == {0, 1}
    shutil.rmtree(run / "releases" / "r1")
    shutil.rmtree(run / "training" / "r1")
    blind = tuple(replace(user, group=None) for user in people)
    assert train(users=blind) == federation.release_files(1)


def test_training_depends_on_what_people_wrote(train: Any, run: Path, federation: Any) -> None:
    first, *others = federation.people.server
    changed = replace(first.history[0], target="gear" if first.history[0].target else "x")
    changed = replace(changed, text=changed.text + " and more")
    poisoned = replace(first, history=(changed, *first.history[1:]))
    shutil.rmtree(run / "releases" / "r1")
    shutil.rmtree(run / "training" / "r1")
    came = train(users=(poisoned, *others))
    for name, data in federation.release_files(1).items():
        assert came[name] != data, name


def test_a_release_names_no_person(federation: Any) -> None:
    for version in (1, 2):
        for name, data in federation.release_files(version).items():
            for user in (*federation.people.server, *federation.people.device):
                assert user.user_id.encode() not in data, (name, user.user_id)


def test_the_anchors_are_places_of_the_users_whom_the_log_names(
    federation: Any, base: BaseModel
) -> None:
    release = federation.release(1, base)
    log = json.loads((federation.run_dir / "training" / "r1" / "bank.json").read_text())
    embeddings = load_file(federation.run_dir / "training" / "r1" / "embedding.safetensors")
    places = release.space.place(embeddings["embeddings"])
    by_id = {u.user_id: i for i, u in enumerate(federation.people.server)}
    torch.testing.assert_close(release.anchors, places[[by_id[name] for name in log["anchors"]]])
    lengths = {u.user_id: len(u.history) for u in federation.people.server}
    assert all(lengths[name] >= federation.config.bank.min_history for name in log["anchors"])
    assert set(log["curves"]) == set(log["anchors"])


def test_the_experts_log_tells_every_user_s_gates(federation: Any, base: BaseModel) -> None:
    release = federation.release(1, base)
    folder = federation.run_dir / "training" / "r1"
    log = json.loads((folder / "experts.json").read_text())
    places = release.space.place(load_file(folder / "embedding.safetensors")["embeddings"])
    for user, place in zip(federation.people.server, places, strict=True):
        logits = [
            sum(
                float(z) * float(w) for z, w in zip(place, release.router.weight[:, e], strict=True)
            )
            + float(release.router.bias[e])
            for e in range(2)
        ]
        expected = torch.softmax(torch.tensor(logits), 0)
        assert log["gates"][user.user_id] == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(log["gates"]) == len(federation.people.server)


def test_without_anyone_who_can_be_an_anchor_the_server_says_so_before_it_trains(
    federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train_population", "train_experts", "train_bank"):
        monkeypatch.setattr(server.training, name, refuse)
    bank = federation.config.bank.model_copy(update={"min_history": 1000})
    config = federation.config.model_copy(update={"bank": bank})
    with pytest.raises(MesofedError, match=r"bank\.min_history"):
        train_release(config, tmp_path, 1, federation.people.server)


# The second release


def start_again(run: Path, live: list[float]) -> None:
    """Forget the second release; the devices have sent these mean expert weights."""
    shutil.rmtree(run / "training" / "r2")
    shutil.rmtree(run / "releases" / "r2")
    path = run / "statistics" / "r1.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["mean"]["expert_weights"] = live
    path.write_text(json.dumps(record), encoding="utf-8")


def test_the_second_release_goes_on_from_the_first_and_its_statistics(
    train: Any, run: Path, federation: Any, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def spy(name: str) -> None:
        trainer = getattr(server.training, name)

        def called(*args: Any) -> Any:
            seen[name] = args
            return trainer(*args)

        monkeypatch.setattr(server.training, name, called)

    for name in ("train_population", "train_experts", "train_bank"):
        spy(name)
    gates = json.loads((run / "training" / "r1" / "experts.json").read_text())["gates"]
    wanted = 0 if sum(g[0] for g in gates.values()) < sum(g[1] for g in gates.values()) else 1
    live = [0.8, 0.2] if wanted == 0 else [0.2, 0.8]
    start_again(run, live)
    train(2)
    before = federation.release(1, base)

    *_, start = seen["train_population"]
    for linear in base.maps:
        assert torch.equal(start.factors[linear.name].a, before.population.factors[linear.name].a)
        assert torch.equal(start.factors[linear.name].b, before.population.factors[linear.name].b)
    *_, (experts, router) = seen["train_experts"]
    assert torch.equal(router.weight, before.router.weight)
    assert torch.equal(router.bias, before.router.bias)
    for old, new in zip(before.experts, experts, strict=True):
        for linear in base.maps:
            assert torch.equal(old.factors[linear.name].b, new.factors[linear.name].b)

    # Everyone counts as the live population wants: recomputed from the log, by hand.
    users = federation.people.server
    rows = [gates[user.user_id] for user in users]
    mean = [sum(row[e] for row in rows) / len(rows) for e in range(2)]
    weights = [sum(row[e] * live[e] / mean[e] for e in range(2)) for row in rows]
    assert all(0.34 < weight < 2.95 for weight in weights), "no bound is touched in this test"
    assert max(weights) > 1.1
    curated = seen["train_experts"][3]
    owned = [len(user.history) + len(user.queries) for user in users]
    expected = [max(1, round(n * w)) for n, w in zip(owned, weights, strict=True)]
    assert [len(own) for own in curated] == pytest.approx(expected, abs=1)
    assert sum(abs(len(c) - n) for c, n in zip(curated, owned, strict=True)) > 5
    assert len(seen["train_population"][1]) == sum(len(own) for own in curated)


def test_what_devices_send_decides_the_second_release(
    train: Any, run: Path, federation: Any
) -> None:
    record = json.loads((federation.run_dir / "statistics" / "r1.json").read_text())
    live = record["mean"]["expert_weights"]
    start_again(run, live)
    assert train(2) == federation.release_files(2)
    start_again(run, live[::-1])
    other = train(2)
    for name in ("population.safetensors", "experts.safetensors"):
        assert other[name] != federation.release_files(2)[name]


def test_without_a_mean_the_second_release_takes_the_corpus_as_it_is(
    train: Any, run: Path, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secure sum that was lost costs the steering of one release."""
    start_again(run, [0.5, 0.5])
    path = run / "statistics" / "r1.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, "mean": None}), encoding="utf-8")
    seen: list[Any] = []

    def stop(base: Any, pooled: Any, *rest: Any) -> Any:
        seen.extend(pooled)
        raise InterruptedError

    monkeypatch.setattr(server.training, "train_population", stop)
    with pytest.raises(InterruptedError):
        train(2)
    users = federation.people.server
    assert len(seen) == sum(len(user.history) + len(user.queries) for user in users)


def test_the_second_release_keeps_the_space_of_the_first(federation: Any, base: BaseModel) -> None:
    first, second = (federation.release(version, base) for version in (1, 2))
    assert (first.version, second.version) == (1, 2)
    assert torch.equal(first.space.mean, second.space.mean)
    assert torch.equal(first.space.basis, second.space.basis)
    assert not torch.equal(first.router.weight, second.router.weight)


def test_a_bank_under_differential_privacy_says_so_in_its_log(
    federation: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_bank(**rounds: Any) -> tuple[Any, bytes]:
        shutil.rmtree(run / "releases" / "r1", ignore_errors=True)
        (run / "training" / "r1" / "bank.json").unlink()
        bank = federation.config.bank.model_copy(update={"dp_epsilon": 4.0})
        config = federation.config.model_copy(
            update={"bank": bank, "rounds": federation.config.rounds.model_copy(update=rounds)}
        )
        folder = train_release(config, run, 1, federation.people.server)
        log = json.loads((run / "training" / "r1" / "bank.json").read_text(encoding="utf-8"))
        return log, (folder / "bank.safetensors").read_bytes()

    log, bank = train_bank()
    assert bank != federation.release_files(1)["bank.safetensors"]
    assert set(log["privacy"]["anchors"]) == set(log["anchors"])
    for budget in log["privacy"]["anchors"].values():
        assert budget["releases"] == 2  # rounds.count
        assert 3.9 < budget["epsilon"] <= 4.0
        assert budget["delta"] == 1e-5
    # Whoever has the configuration has the noise, and the log says so.
    assert train_bank()[1] == bank
    assert "whoever knows the seed can take the noise away" in log["privacy"]["noise"]
    # In a deployment the noise does not follow from the configuration.
    log, others = train_bank(devices=3)
    assert others != bank
    assert log["privacy"]["noise"].startswith("from the system's randomness, kept nowhere")
