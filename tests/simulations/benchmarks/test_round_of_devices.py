"""A round of devices: the peer's client learns, step by step, what our device learns."""

from pathlib import Path

import pytest
import torch

from shared.corpus.load import load_corpus
from shared.corpus.split import split_users
from shared.errors import MesofedError
from simulations.benchmarks import ray_peer, round_of_devices
from simulations.benchmarks.measurement import Settings
from simulations.benchmarks.workload import IGNORED


def test_client_and_device_have_the_same_losses(settings: Settings) -> None:
    config = round_of_devices.run_config(settings)
    people = split_users(load_corpus(config.corpus, config.seed), config.corpus, config.seed).device
    assert len(people) == round_of_devices.DEVICES
    release, clients, equality = round_of_devices.prepare(config, people)
    assert equality.value < 1e-5
    assert len(clients) == len(people)
    assert len(clients[0].rates) == len(clients[0].batches) == round_of_devices.EPOCHS
    other = ray_peer.ClientWork(**{**vars(clients[0]), "start_seed": 1})
    losses = ray_peer.train_client(other, release.population.tensors())
    expected = ray_peer.train_client(clients[0], release.population.tensors())
    assert round_of_devices.largest_difference([losses], [expected]) > 1e-5


def test_our_round_trains_every_device(settings: Settings, tmp_path: Path) -> None:
    config = round_of_devices.run_config(settings)
    people = split_users(load_corpus(config.corpus, config.seed), config.corpus, config.seed).device
    release, clients, _ = round_of_devices.prepare(config, people)
    seconds, losses = round_of_devices.our_round(config, release, tmp_path / "run")
    assert seconds > 0
    expected = [ray_peer.train_client(work, release.population.tensors()) for work in clients[:2]]
    # Ours over bf16, theirs over fp32.
    difference = round_of_devices.largest_difference(losses[:2], expected)
    assert difference < round_of_devices.BF16_LOSSES
    assert len(losses) == round_of_devices.DEVICES


def test_work_survives_its_file(tmp_path: Path) -> None:
    work = ray_peer.ClientWork("tiny", 2, 3, 0.01, 1.0, [0.1], [[([1, 2], [3]), ([4], [5, 6])]])
    ray_peer.write_work(tmp_path, [work, work])
    read = ray_peer.read_work(tmp_path, 1)
    assert read.rates == work.rates
    ids, mask, labels = ray_peer.padded(read.batches[0])
    assert ids.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert labels.tolist() == [[IGNORED, IGNORED, 3], [IGNORED, 5, 6]]


def test_losses_are_averaged_within_samples_first() -> None:
    logits = torch.zeros(2, 4, 8)
    logits[0, 0, 1] = 3.0
    labels = torch.tensor([[0, 1, IGNORED, IGNORED], [0, 1, 2, 3]])
    first = torch.nn.functional.cross_entropy(logits[:1, 0], labels[:1, 1])
    second = torch.log(torch.tensor(8.0))
    assert ray_peer.mean_of_samples(logits, labels) == pytest.approx(float(first + second) / 2)


def test_without_ray_the_row_is_left_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_of_devices, "find_spec", lambda name: None)
    found = round_of_devices.round_of_devices(settings, lambda: None)
    assert "pip install 'mesofed[ray]'" in found.skipped
    assert not found.figures


def test_a_client_that_fails_ends_the_row() -> None:
    class Reply:
        error = type("Error", (), {"reason": "out of memory"})()

        def has_error(self) -> bool:
            return True

    with pytest.raises(MesofedError, match="out of memory"):
        ray_peer.losses_of([Reply()])
