"""What the privacy page says is not stopped: shown, so that nobody takes it for stopped."""

import shutil
from pathlib import Path
from typing import Any

from client.ledger import ledger
from client.lock import forget_key, lock_with_passphrase, unlock
from client.vault import Vault
from shared.corpus.user import ProfileItem, User
from shared.privacy import LedgerEntry

WORDS = "four quiet old ducks"
PERSON = User("wilhelmina", (ProfileItem("h0", "writing", "", "Snow on the roof."),), ())


def vault_in(folder: Path) -> Vault:
    vault = Vault(folder, lock_with_passphrase(folder, WORDS))
    vault.move_in(PERSON)
    return vault


def opened(folder: Path) -> Vault:
    return Vault(folder, unlock(folder, lambda: WORDS))


def spent(release: int) -> dict[str, Any]:
    entry = LedgerEntry(release, "local", 2.0, "2026-01-01T00:00:00+00:00")
    asked = {"request": "query.router_statistics", "release": release, "question": "q"}
    return {"time": "t", **asked, "content": "AA==", "ledger": entry.to_json()}


def test_an_older_copy_of_the_whole_vault_sets_the_budget_back(tmp_path: Path) -> None:
    vault = vault_in(tmp_path / "vault")
    vault.sent.add(spent(1))
    shutil.copytree(tmp_path / "vault", tmp_path / "backup")
    vault.sent.add(spent(2))
    assert [entry.release for entry in ledger(opened(tmp_path / "vault"))] == [1, 2]
    shutil.rmtree(tmp_path / "vault")
    shutil.copytree(tmp_path / "backup", tmp_path / "vault")
    assert [entry.release for entry in ledger(opened(tmp_path / "vault"))] == [1]


def test_a_copy_with_its_lock_opens_after_the_vault_was_erased(tmp_path: Path) -> None:
    vault_in(tmp_path / "vault")
    shutil.copytree(tmp_path / "vault", tmp_path / "copy")
    shutil.copytree(tmp_path / "vault", tmp_path / "lockless")
    (tmp_path / "lockless" / "lock.json").unlink()
    forget_key(tmp_path / "vault")
    assert opened(tmp_path / "copy").person() == PERSON
    # Sizes are visible to whoever has no passphrase, words are not.
    for path in (tmp_path / "lockless").rglob("*"):
        assert path.is_dir() or (path.stat().st_size > 0 and b"Snow" not in path.read_bytes())
