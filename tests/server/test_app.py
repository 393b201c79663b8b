"""The ServerApp: rounds in order, finished ones skipped, an unfinished one done again."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

import server.rounds
import server.training
from client.egress import egress_guard
from server.app import app as server_app
from shared.atomic_file import write_bytes, write_json
from shared.base_model import load_base
from shared.config import RunConfig, dump_config, load_config, with_format
from shared.errors import MesofedError
from shared.progress import shown
from shared.protocol import (
    PROTOCOL,
    REASONS,
    NoisedStatistics,
    Refusal,
    RouterStatistics,
    noised_to_content,
    read_noised_request,
    read_statistics_request,
    release_from_content,
    statistics_to_content,
)
from simulations.local_grid import run_local

DEVICES = 4


class Federation:
    """A run whose trainer and devices are stand-ins that keep a diary."""

    def __init__(self, run_dir: Path, privacy: dict[str, Any] | None = None, **rounds: Any) -> None:
        self.run_dir = run_dir
        self.trained: list[int] = []
        self.installed: list[tuple[int, int, tuple[str, ...]]] = []
        self.broken: set[int] = set()
        self.mute: set[int] = set()
        config = RunConfig.model_validate(
            {
                "base": {"name": "tiny", "format": "fp32", "top_layers": 2},
                "corpus": {"server_users": 6, "device_users": DEVICES},
                "rounds": {"deadline_seconds": 20.0, **rounds},
                "privacy": privacy or {},
            }
        )
        run_dir.mkdir(exist_ok=True)
        (run_dir / "config.toml").write_text(dump_config(config), encoding="utf-8")

    def train_release(self, config: RunConfig, run_dir: Path, version: int, users: Any) -> Path:
        assert len(users) == 6
        self.trained.append(version)
        folder = run_dir / "releases" / f"r{version}"
        write_bytes(folder / "population.safetensors", b"\x01" * version)
        # What a crash in the middle of a write leaves behind.
        write_bytes(folder / ".manifest.json.1a2b.tmp", b"{")
        write_json(folder / "manifest.json", {"release": version, "experts": 2, "anchors": 1})
        return folder

    def client_app(self) -> ClientApp:
        app = ClientApp(mods=[egress_guard])

        @app.train("install_release")
        def install(message: Message, context: Context) -> Message:
            if context.node_id in self.broken:
                raise RuntimeError("broken")
            release, files = release_from_content(message.content)
            self.installed.append((context.node_id, release, tuple(files)))
            return Message(RecordDict(), reply_to=message)

        @app.query("router_statistics")
        def router_statistics(message: Message, context: Context) -> Message:
            if context.node_id in self.mute:
                raise RuntimeError("mute")
            release = read_statistics_request(message.content)
            statistics = RouterStatistics(
                release, (context.node_id / 10, 1 - context.node_id / 10), (1.0,), 0.5, 0.5
            )
            return Message(statistics_to_content(statistics), reply_to=message)

        @app.query("noised_statistics")
        def noised_statistics(message: Message, context: Context) -> Message:
            release, _ = read_noised_request(message.content)
            said = NoisedStatistics(release, (2_500, 7_500, 10_000, 2_500, 2_500))
            return Message(noised_to_content(said), reply_to=message)

        return app

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server.training, "train_release", self.train_release)
        run_local(server_app, self.client_app(), self.run_dir, DEVICES)

    def statistics(self, release: int) -> dict[str, Any]:
        path = self.run_dir / "statistics" / f"r{release}.json"
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record


def test_every_round_trains_broadcasts_gathers_and_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run", count=2)
    federation.run(monkeypatch)
    assert federation.trained == [1, 2]
    files = ("manifest.json", "population.safetensors")
    assert sorted(federation.installed) == [(n, r, files) for n in (1, 2, 3, 4) for r in (1, 2)]
    for release in (1, 2):
        record = federation.statistics(release)
        assert (record["asked"], record["answered"], record["refused"]) == (4, 4, [])
        assert [device["node"] for device in record["devices"]] == [1, 2, 3, 4]
        assert [d["statistics"]["release"] for d in record["devices"]] == [release] * 4
        assert record["mean"] == {"expert_weights": [0.25, 0.75], "anchor_weights": [1.0]}


def test_in_a_deployment_the_whole_corpus_is_the_server_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run", devices=DEVICES)
    seen: list[set[str]] = []

    def train_release(config: RunConfig, run_dir: Path, version: int, users: Any) -> Path:
        seen.append({user.user_id for user in users})
        return federation.train_release(config, run_dir, version, users)

    monkeypatch.setattr(server.training, "train_release", train_release)
    config = load_config(tmp_path / "run" / "config.toml")
    whole = config.corpus.model_copy(update={"server_users": 6, "device_users": 1})
    settings = dump_config(config.model_copy(update={"corpus": whole}))
    (tmp_path / "run" / "config.toml").write_text(settings, encoding="utf-8")
    run_local(server_app, federation.client_app(), tmp_path / "run", DEVICES)
    assert federation.statistics(1)["asked"] == DEVICES  # not the one that the corpus would have
    assert len(seen[0]) == 6


def test_a_finished_round_is_skipped_and_a_lost_one_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run", count=2)
    federation.run(monkeypatch)
    first, second = federation.statistics(1), federation.statistics(2)
    (tmp_path / "run" / "statistics" / "r2.json").unlink()
    federation.run(monkeypatch)
    assert federation.trained == [1, 2, 2]
    assert (federation.statistics(1), federation.statistics(2)) == (first, second)
    federation.run(monkeypatch)
    assert federation.trained == [1, 2, 2]


def test_a_missed_quorum_stops_the_run_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run", quorum=0.75)
    federation.broken = {1, 3}
    with pytest.raises(MesofedError, match=r"at least 3 of 4 devices to install release 1; 2 did"):
        federation.run(monkeypatch)
    assert not (tmp_path / "run" / "statistics").exists()
    missed = json.loads((tmp_path / "run" / "missed" / "r1.json").read_text(encoding="utf-8"))
    assert missed == {
        "needed": 3,
        "asked": 4,
        "answered": 2,
        "refused": [{"node": n, "reason": REASONS[Refusal.DEVICE_FAILED]} for n in (1, 3)],
        "stray": 0,
    }
    federation.broken = {3}
    federation.run(monkeypatch)
    record = federation.statistics(1)
    assert (record["asked"], record["answered"]) == (4, 3)
    assert [entry["node"] for entry in record["refused"]] == [3]


def test_a_quorum_missed_by_statistics_tells_of_those_that_did_not_install_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run", quorum=0.75)
    federation.broken, federation.mute = {1}, {2}
    with pytest.raises(
        MesofedError, match=r"at least 3 of 3 devices to send router stat"
    ) as raised:
        federation.run(monkeypatch)
    file = tmp_path / "run" / "missed" / "r1.json"
    assert str(raised.value).endswith(f" Who was refused, and why: {file}")
    missed = json.loads(file.read_text(encoding="utf-8"))
    assert [entry["node"] for entry in missed["refused"]] == [1, 2]


@pytest.mark.parametrize("version", [PROTOCOL - 1, PROTOCOL + 1])
def test_a_client_and_a_server_of_two_versions_part_with_a_message_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """The server speaks an older protocol, or a newer one, than the device's egress guard."""
    real = server.rounds.release_to_content

    def other(files: Any, release: int) -> RecordDict:
        content = real(files, release)
        content["round"] = ConfigRecord({"protocol": version, "release": release})
        return content

    monkeypatch.setattr(server.rounds, "release_to_content", other)
    federation = Federation(tmp_path / "run")
    with pytest.raises(
        MesofedError,
        match=r"at least 2 of 4 devices to install release 1; 0 did \(4 x the device speaks "
        r"another protocol version: update the older side, device or server\)",
    ):
        federation.run(monkeypatch)
    assert federation.installed == []
    missed = json.loads((tmp_path / "run" / "missed" / "r1.json").read_text(encoding="utf-8"))
    assert [entry["node"] for entry in missed["refused"]] == [1, 2, 3, 4]
    assert {entry["reason"] for entry in missed["refused"]} == {REASONS[Refusal.OTHER_PROTOCOL]}


def test_flower_s_log_tells_of_a_missed_quorum_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    federation = Federation(tmp_path / "run", quorum=1.0)
    federation.broken = {1}
    with pytest.raises(MesofedError) as raised:
        federation.run(monkeypatch)
    caplog.clear()
    # What Flower 1.41 does with what a ServerApp raises, before the run ends as failed.
    logging.getLogger("flwr").error("%s raised an exception", "ServerApp", exc_info=raised.value)
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info) == (str(raised.value), None)
    assert record.getMessage().startswith("Expected at least 4 of 4 devices to install release 1")
    assert "\n" not in record.getMessage()


def test_a_run_without_a_config_gets_one_that_it_can_be_resumed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run")
    kept = tmp_path / "run" / "config.toml"
    tiny = RunConfig.model_validate({"seed": 9, "base": {"name": "tiny"}})
    monkeypatch.setattr("shared.run_settings.load_config", lambda path: tiny)
    kept.unlink()

    def stop(config: RunConfig, *arguments: Any) -> Path:
        raise MesofedError("far enough")

    monkeypatch.setattr(federation, "train_release", stop)
    with pytest.raises(MesofedError, match="far enough"):
        federation.run(monkeypatch)
    format_here = load_base(tiny.base, tiny.adapt).format
    assert format_here != tiny.base.format == "auto"
    assert load_config(kept) == with_format(tiny, format_here)


def test_a_deployed_sum_that_could_never_be_opened_stops_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run")
    kept = tmp_path / "run" / "config.toml"
    few = {
        **load_config(kept).model_dump(),
        "privacy": {"mode": "central"},
        "rounds": {"devices": 2},
    }
    kept.write_text(dump_config(RunConfig.model_validate(few)), encoding="utf-8")

    def train(*arguments: Any) -> Path:
        raise AssertionError("trained")

    monkeypatch.setattr(federation, "train_release", train)
    with pytest.raises(
        MesofedError, match=r"at least 3 devices for privacy\.mode=central .* got 2"
    ):
        federation.run(monkeypatch)


# What a deployment leaves, where nobody prepares the run or shows its stages


def test_a_deployed_run_says_what_it_is_and_nothing_of_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Federation(tmp_path / "run", devices=DEVICES).run(monkeypatch)
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (record["kind"], record["command"]) == ("deployment", ["flwr", "run"])
    assert (record["base"]["name"], len(record["base"]["fingerprint"])) == ("tiny", 64)
    corpus = json.loads((tmp_path / "run" / "corpus.json").read_text(encoding="utf-8"))
    assert (len(corpus["server_users"]), corpus["device_users"]) == (6, [])
    assert set(corpus["groups"]) == set(corpus["server_users"])


def test_a_config_that_was_put_into_the_run_folder_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path / "run")
    kept = tmp_path / "run" / "config.toml"
    written = f"# ours\n{kept.read_text(encoding='utf-8')}"
    kept.write_text(written, encoding="utf-8")
    federation.run(monkeypatch)
    assert kept.read_text(encoding="utf-8") == written


def test_a_deployed_run_shows_its_stages_and_ends_with_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    Federation(run).run(monkeypatch)
    said = capsys.readouterr().out
    assert "✓ personalise, release 1" in said
    assert f"Router statistics: {run / 'statistics' / 'r1.json'}\n" in said
    assert "Privacy: no noise was added (mode off), so no epsilon holds.\n" in said
    words = said[said.index("Next:") :].replace("\\\n", "").split()
    assert words[1].endswith("mesofed")
    assert words[2:] == ["report", str(run)]
    assert "Privacy: no noise was added (mode off), so no epsilon holds.\n" in said


def test_the_server_s_closing_lines_tell_epsilon_and_delta_of_each_round_and_in_total(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = Federation(
        tmp_path / "run", {"mode": "local", "epsilon": 8.0, "delta": 1e-6}, count=2
    )
    federation.run(monkeypatch)
    said = capsys.readouterr().out
    first, second = (federation.statistics(release)["privacy"] for release in (1, 2))
    # Two rounds of the same noise that spend a budget of 8 between them.
    assert first["epsilon_in_total"] == first["epsilon_of_round"] == second["epsilon_of_round"]
    assert 7.9 < second["epsilon_in_total"] <= 8.0
    each = f"{first['epsilon_of_round']:.3g}"
    assert 4.0 < float(each) < 6.0
    for line in (
        f"Privacy of round 1, mode local: epsilon {each} at delta 1e-06.",
        f"Privacy of round 2, mode local: epsilon {each} at delta 1e-06.",
        "Privacy in total, one person over all rounds: epsilon 8 of 8 at delta 1e-06.",
    ):
        assert f"{line}\n" in said


def test_under_a_command_that_shows_the_stages_the_server_says_nothing_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(file=io.StringIO(), width=100)
    with shown(console):
        Federation(tmp_path / "run").run(monkeypatch)
    assert capsys.readouterr().out == ""
    assert "Next:" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_mesofed_reports_a_deployed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesofed: Any
) -> None:
    run = tmp_path / "run"
    Federation(run, devices=DEVICES).run(monkeypatch)
    done = mesofed("report", run)
    assert done.code == 0, done.text
    assert "Release 1 went to 4 devices, of which 4 sent router statistics." in done.text
    assert "Quality is measured on devices only in a simulation" in done.text
    assert "E1 0.25 E2 0.75" in done.text  # nodes 1 to 4 send n / 10 and the rest
    assert f"simulate {run / 'config.toml'} --set rounds.devices=0" in done.text
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Quality is measured on devices only in a simulation" in page
    for shown_part in ('id="heat-map"', 'id="bytes-table"', "Mean weight of each expert"):
        assert shown_part in page
    for empty in ('id="results-table"', "not yet", "No device has been evaluated", "Rand index"):
        assert empty not in page
    resumed = mesofed("simulate", "--resume", run)
    assert (resumed.code, "Traceback" in resumed.text) == (1, False)
    assert "it is a run of a deployment" in resumed.text
