"""Canaries: what a vault holds that must never be seen outside, in forms that no chance brings.

Texts are random letters, in every place where a person's own words or names stand; LoRA values are
random numbers. Both are unique to a device, so that a find tells whose it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.device import Device
from client.vault import Vault
from shared.corpus.user import ProfileItem, Query, User
from shared.lora.lora import LinearMap
from shared.seeding import derive_seed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz234567"
LENGTH = 40
PLANTED_METHOD = "oppu"
"""The method whose user LoRA is planted, so that the device keeps it and trains it no more."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Canary:
    """A thing of one device that must not leave it.

    Attributes
    ----------
    device : int
        Partition, from 0.
    kind : str
        Where it stands: ``history text``, ``user LoRA``, ...
    text : str
        Empty for numbers.
    values : ndarray of float, optional
        Empty for texts.
    planted : bool
        Whether it was made for the audit, with digits enough to be known when rounded; what
        devices train and compute is searched for as it is.
    """

    device: int
    kind: str
    text: str = ""
    values: Values | None = None
    planted: bool = True


def canary_text(seed: int, device: int, kind: str) -> str:
    """Return the text that stands in one place of one device."""
    rng = np.random.default_rng(derive_seed(seed, "canary", device, kind))
    return "".join(rng.choice(list(LETTERS), LENGTH))


def canary_tensors(maps: tuple[LinearMap, ...], seed: int, device: int) -> dict[str, Tensor]:
    """Return a user LoRA of rank 1 over the first map, its values between 0.1 and 1 in size."""
    rng = np.random.default_rng(derive_seed(seed, "canary", device, "user LoRA"))
    first = maps[0]
    return {
        f"{first.name}.{side}": torch.from_numpy(
            (rng.uniform(0.1, 1.0, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
        )
        for side, shape in (("a", (first.in_features, 1)), ("b", (1, first.out_features)))
    }


def plant(home: Device, person: User, device: int, rounds: int) -> tuple[Canary, ...]:
    """Let a person with canaries move in to a vault, and plant a user LoRA for every release.

    The device takes it for what it has trained itself, and trains no other in its place.
    """
    vault, seed = home.vault, home.seed
    texts = {
        kind: canary_text(seed, device, kind)
        for kind in ("history text", "target", "item id", "user id", "query", "gold", "file name")
    }
    first = person.history[0]
    item = ProfileItem(
        texts["item id"], first.task, f"{texts['history text']} {first.text}", texts["target"]
    )
    query = Query("q-canary", first.task, texts["query"], texts["gold"])
    vault.move_in(
        replace(
            person,
            user_id=texts["user id"],
            history=(*person.history, item),
            queries=(*person.queries, query),
        )
    )
    (vault.folder / f"{texts['file name']}.txt").write_text("a person's own file", encoding="utf-8")
    tensors = canary_tensors(home.base.maps, seed, device)
    log = {"settings": home.settings_of(PLANTED_METHOD), "curve": [], "tokens": 0, "seconds": 0.0}
    for release in range(1, rounds + 1):
        vault.save_private(release, PLANTED_METHOD, {**tensors, "weights": torch.ones(1)}, log)
    return (
        *(Canary(device, kind, text) for kind, text in texts.items()),
        Canary(device, "user LoRA", values=_flat(tensors)),
    )


def learned(vault: Vault, device: int) -> tuple[Canary, ...]:
    """Return what a device has computed and trained by itself: embedding, LoRAs and weights."""
    found = []
    for path in sorted(vault.folder.glob("embedding/*.safetensors")):
        embedding = vault.load_embedding(path.stem)
        if embedding is not None:
            found.append(Canary(device, "embedding", values=_flat({"": embedding}), planted=False))
    for path in sorted(vault.folder.glob("private/r*/*.safetensors")):
        kept = vault.load_private(_release(path), path.stem)
        if path.stem != PLANTED_METHOD and kept is not None:
            tensors, _ = kept
            values = _flat({k: v for k, v in tensors.items() if k != "weights"})
            found.append(Canary(device, f"trained {path.stem}", values=values, planted=False))
    return tuple(found)


def really_there(vault: Vault, canaries: tuple[Canary, ...]) -> bool:
    """Return whether a vault holds its planted texts: a search for what is not there is idle."""
    names = " ".join(path.name for path in vault.folder.iterdir())
    held = json.dumps(vault.person(), default=vars, ensure_ascii=False) + names
    return all(canary.text in held for canary in canaries)


def _release(path: Path) -> int:
    return int(path.parent.name.removeprefix("r"))


def _flat(tensors: Mapping[str, Tensor]) -> Values:
    return np.concatenate([tensor.double().flatten().numpy() for tensor in tensors.values()])
