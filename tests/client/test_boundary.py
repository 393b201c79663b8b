"""The boundary: two requests, one journal, and the same bytes however often they are asked for."""

import base64
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from safetensors.torch import load

from client.boundary import answer
from client.device import Device
from client.inspection import erase, sent, stored
from client.simulated import ask_simulated
from client.vault import Vault
from shared.corpus.user import User
from shared.errors import MesofedError
from shared.flower_internals import content_to_bytes
from shared.protocol import (
    INSTALL_RELEASE,
    ROUTER_STATISTICS,
    ProtocolError,
    Refusal,
    RouterStatistics,
    release_to_content,
    statistics_from_content,
    statistics_request,
)


@pytest.fixture
def install(federation: Any) -> Callable[..., RecordDict]:
    def ask(device: Device, version: int, named: int | None = None) -> RecordDict:
        files = federation.release_files(version)
        return answer(device, INSTALL_RELEASE, release_to_content(files, named or version))

    return ask


def ask_statistics(device: Device, version: int) -> RecordDict:
    return answer(device, ROUTER_STATISTICS, statistics_request(version))


def refusal(ask: Callable[[], Any]) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        ask()
    return caught.value.refusal


def test_the_journal_holds_what_was_answered_byte_for_byte(
    sealed_device: Device, install: Any
) -> None:
    replies = [install(sealed_device, 1), ask_statistics(sealed_device, 1)]
    entries = sealed_device.vault.sent.entries()
    assert [(e["request"], e["release"]) for e in entries] == [
        (INSTALL_RELEASE, 1),
        (ROUTER_STATISTICS, 1),
    ]
    for entry, reply in zip(entries, replies, strict=True):
        assert base64.b64decode(entry["content"]) == content_to_bytes(reply)
    assert [entry["bytes"] for entry in sent(sealed_device.vault)] == [
        content_to_bytes(reply) for reply in replies
    ]
    fields = {"time", "request", "release", "question", "content"}
    assert set(sealed_device.vault.sent.journal.entries()[0]) == fields


def test_the_answer_is_what_the_device_computes(sealed_device: Device, install: Any) -> None:
    install(sealed_device, 1)
    statistics = statistics_from_content(ask_statistics(sealed_device, 1), 2, 3)
    assert statistics == sealed_device.statistics()


def test_statistics_are_computed_once(
    sealed_device: Device, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(sealed_device, 1)
    first = content_to_bytes(ask_statistics(sealed_device, 1))
    other = RouterStatistics(1, (0.5, 0.5), (1.0, 0.0, 0.0), 0.125, 1.0)
    monkeypatch.setattr(Device, "statistics", lambda self: other)
    again = replace(sealed_device, vault=replace(sealed_device.vault))
    assert content_to_bytes(ask_statistics(again, 1)) == first
    install(again, 2)
    assert content_to_bytes(ask_statistics(again, 1)) == first
    times = [(e["request"], e["release"], e["times"]) for e in sealed_device.vault.sent.entries()]
    assert times == [(INSTALL_RELEASE, 1, 1), (ROUTER_STATISTICS, 1, 3), (INSTALL_RELEASE, 2, 1)]


def test_nothing_is_answered_that_the_journal_cannot_hold(
    sealed_device: Device, install: Any
) -> None:
    install(sealed_device, 1)
    ask_statistics(sealed_device, 1)
    path = sealed_device.vault.sent.journal.path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    for ask in (lambda: ask_statistics(sealed_device, 1), lambda: install(sealed_device, 2)):
        with pytest.raises(MesofedError, match="sends nothing more"):
            ask()
    path.unlink()
    path.mkdir()
    for ask in (lambda: ask_statistics(sealed_device, 1), lambda: install(sealed_device, 2)):
        with pytest.raises(MesofedError):
            ask()


def test_another_release_than_the_installed_one_is_refused(
    sealed_device: Device, install: Any
) -> None:
    early = refusal(lambda: ask_statistics(sealed_device, 1))
    assert early is Refusal.OTHER_RELEASE
    install(sealed_device, 1)
    for version in (2, 99):
        asked = refusal(lambda version=version: ask_statistics(sealed_device, version))
        assert asked is Refusal.OTHER_RELEASE
    assert refusal(lambda: install(sealed_device, 2, named=5)) is Refusal.OTHER_RELEASE
    assert len(sealed_device.vault.sent.entries()) == 1


@pytest.mark.parametrize(
    "request_name", ["", "query", "query.export", "train.router_statistics", "evaluate"]
)
def test_an_unknown_request_is_refused(sealed_device: Device, request_name: str) -> None:
    asked = refusal(lambda: answer(sealed_device, request_name, statistics_request(1)))
    assert asked is Refusal.UNKNOWN_REQUEST
    assert sealed_device.vault.sent.entries() == []


def test_more_than_the_question_is_refused(sealed_device: Device, install: Any) -> None:
    install(sealed_device, 1)
    content = statistics_request(1)
    content["more"] = ConfigRecord({"please": "history"})
    with pytest.raises(ProtocolError):
        answer(sealed_device, ROUTER_STATISTICS, content)
    assert len(sealed_device.vault.sent.entries()) == 1


def test_a_release_of_another_server_is_refused_and_not_kept(
    sealed_device: Device, federation: Any, install: Any
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from shared.signature import Signer, sign_release

    install(sealed_device, 1)
    files = sign_release(federation.release_files(2), Signer(Ed25519PrivateKey.generate()))
    unsigned = {name: data for name, data in files.items() if name != "manifest.sig"}
    for hostile in (files, unsigned):
        with pytest.raises(MesofedError, match="signed"):
            answer(sealed_device, INSTALL_RELEASE, release_to_content(hostile, 2))
    assert sealed_device.vault.installed() == 1
    assert sealed_device.vault.trusted() == federation.server_key


def test_a_device_takes_the_next_key_from_the_one_it_trusts_and_the_old_one_no_more(
    sealed_device: Device, federation: Any
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from shared.signature import Signer, rotation, sign_release

    keys = [Ed25519PrivateKey.generate() for _ in range(3)]
    steps = [rotation(old, new.public_key()) for old, new in itertools.pairwise(keys)]
    old, new, newest = (Signer(key, tuple(steps[:n])) for n, key in enumerate(keys))
    vault = sealed_device.vault
    vault.trust(old.public)

    def bring(version: int, signer: Signer) -> None:
        files = sign_release(federation.release_files(version), signer)
        answer(sealed_device, INSTALL_RELEASE, release_to_content(files, version))

    bring(1, old)
    assert vault.trusted() == old.public
    bring(2, new)
    assert Vault(vault.folder, vault.seal).trusted() == new.public
    # The very same release, which a device takes any number of times; only its key is another.
    with pytest.raises(MesofedError, match=f"signed with the key {re.escape(new.public)}; got"):
        bring(2, old)
    bring(2, new)
    # A release that is refused for another reason changes no key.
    with pytest.raises(MesofedError, match="newer than 2"):
        bring(1, newest)
    assert vault.trusted() == new.public


# At rest


def forms(text: str) -> list[bytes]:
    """How a text may lie in a file."""
    plain = text.encode()
    encoded = [base64.b64encode(plain[i:])[4:-4] for i in range(3)]
    return [plain, text.encode("utf-16-le"), json.dumps(text)[1:-1].encode()] + [
        form for form in encoded if len(form) >= 8
    ]


def found(folder: Path, texts: tuple[str, ...]) -> list[str]:
    data = b"\n".join(p.read_bytes() + p.name.encode() for p in folder.rglob("*") if p.is_file())
    words = {word for text in texts for word in text.split() if len(word) > 6} | set(texts)
    return sorted(word for word in words if any(form in data for form in forms(word)))


def test_no_byte_of_a_sealed_vault_tells_of_its_person(
    sealed_device: Device,
    install: Any,
    canaries: tuple[str, ...],
    canary_user: User,
    tmp_path: Path,
) -> None:
    from client.agent import log_error

    bare = Vault(tmp_path / "bare")
    bare.trust(sealed_device.vault.trusted())
    bare.move_in(canary_user)
    devices = {"sealed": sealed_device, "open": replace(sealed_device, vault=bare)}
    for device in devices.values():
        device.prepare()
        install(device, 1)
        device.personalise()
        ask_statistics(device, 1)
        log_error(device.vault, "x", ValueError(canaries[0]))
    assert found(sealed_device.vault.folder, canaries) == []
    assert set(canaries) <= set(found(bare.folder, canaries))  # so the search does search
    # Nor what was learned from them: numbers of the user LoRA, and of the embedding.
    sealed = b"".join(p.read_bytes() for p in sealed_device.vault.folder.rglob("*") if p.is_file())
    for path in (*bare.folder.glob("private/*/*.safetensors"), *bare.folder.glob("embedding/*")):
        for tensor in load(path.read_bytes()).values():
            data = tensor.numpy().tobytes()
            if any(data):
                assert data[:16] not in sealed
    private = sealed_device.vault.load_private(1, "oppu")
    assert private is not None


# Looking at a vault, and forgetting it


def test_what_is_stored_is_counted_by_kind(sealed_device: Device, install: Any) -> None:
    install(sealed_device, 1)
    by_kind = {kind: (files, size) for kind, files, size in stored(sealed_device.vault)}
    folder = sealed_device.vault.folder
    assert by_kind["releases"][0] == 6
    journal = [folder / "journal", folder / "journal.end"]
    assert by_kind["journal"] == (2, sum(path.stat().st_size for path in journal))
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert sum(size for _, size in by_kind.values()) == total


def test_erasing_leaves_nothing(sealed_device: Device, install: Any, tmp_path: Path) -> None:
    install(sealed_device, 1)
    folder, outside = sealed_device.vault.folder, tmp_path / "outside"
    outside.write_bytes(b"not of the vault")
    (folder / ".hidden.tmp").write_bytes(b"1")
    (folder / "link").symlink_to(outside)
    (folder / "folder-link").symlink_to(tmp_path)
    count = sum(1 for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    files, size = erase(folder)
    assert files == count
    assert size > 0
    assert not folder.exists()
    assert outside.read_bytes() == b"not of the vault"


def test_a_socket_that_a_killed_agent_left_is_erased_too(
    sealed_device: Device, short_path: Path
) -> None:
    import socket

    folder = sealed_device.vault.folder.rename(short_path / "v")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "agent.sock"))
    erase(folder)
    assert not folder.exists()


def test_erasing_that_is_killed_anywhere_can_be_done_again(
    sealed_device: Device, install: Any, mesofed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left has to be known for a vault until the last file is gone."""
    install(sealed_device, 1)
    folder, unlink = sealed_device.vault.folder, Path.unlink
    total = sum(1 for path in folder.rglob("*") if path.is_file())

    class KillError(BaseException):
        pass

    for number in range(total):
        with monkeypatch.context() as patch:
            left = iter(range(1, -1, -1))

            def dies(self: Path, missing_ok: bool = False, left: Any = left) -> None:
                if next(left) == 0:
                    raise KillError
                unlink(self, missing_ok)

            patch.setattr(Path, "unlink", dies)
            if number < total - 1:
                with pytest.raises(KillError):
                    erase(folder)
        assert sum(1 for path in folder.rglob("*") if path.is_file()) == total - min(
            number + 1, total - 1
        )
    done = mesofed("device", "forget", folder, "--yes")
    assert done.code == 0, done.text
    assert not folder.exists()


# In a simulation


def test_the_device_of_a_simulation_answers_as_the_boundary_does(
    federation: Any, device_context: Any, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(federation.run_dir, run)
    context = device_context(run, **{"partition-id": 1})
    reply = ask_simulated(context, ROUTER_STATISTICS, statistics_request(2))
    vault = Vault(run / "vaults" / "0001")
    entries = vault.sent.entries()
    assert base64.b64decode(entries[-1]["content"]) == content_to_bytes(reply)
    times = [(e["request"], e["times"]) for e in entries if e["release"] == 2]
    assert times == [(INSTALL_RELEASE, 1), (ROUTER_STATISTICS, 2)]
