"""A scene: the people, the release and the base model on which methods are compared.

Everything that two methods have in common is made once and found here: one population LoRA, one
release, one embedding of each person. What a method alone needs lies in the scene's folder too; a
scene with own items in the prompts, and a release trained so, is one of its own below it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from client.personalize import Routing, route
from server.training import train_population_alone, train_release
from shared.atomic_file import write_bytes
from shared.base_model import BaseModel
from shared.corpus.user import User
from shared.embedding import EmbeddingSpace, embed_user
from shared.methods import Method
from shared.progress import stage
from shared.release import Release, unpack_release
from shared.release_files import read_release_files
from shared.retrieval import NO_EXAMPLES, Examples, given_samples, history_with_examples
from shared.routing import Retrieval, Router
from shared.samples import Sample
from shared.seeding import derive_seed
from shared.tasks import ALL_TASKS
from simulations.comparison.config import ComparisonConfig, Setting
from simulations.comparison.people import divide, held_by_server

NOWHERE = Routing(torch.zeros(0), Retrieval((), (), ()))

DIVISIONS = {"shifted": "shifted"}
"""Slices that divide the people in a way of their own; the others share one division."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Where methods are compared; what is made for them is made when it is first asked for.

    Attributes
    ----------
    config : ComparisonConfig
    seed : int
    slice : str
    setting : {"centralized", "federated"}
    base : BaseModel
    server : tuple of User
        Whose data the server trains on.
    people : tuple of User
        Who is asked.
    folder : Path
        Artefacts of this seed, division and setting, whatever the slice.
    examples : Examples
        Own items that stand before every question, in training and when asked.
    """

    config: ComparisonConfig
    seed: int
    slice: str
    setting: Setting
    base: BaseModel
    server: tuple[User, ...]
    people: tuple[User, ...]
    folder: Path
    examples: Examples = NO_EXAMPLES
    _retrieving: dict[Examples, "Scene"] = field(default_factory=dict, repr=False)

    @cached_property
    def release(self) -> Release:
        """What the server trained."""
        config = self.config.run_config(self.seed, self.examples)
        folder = train_release(config, self.folder, 1, self.server)
        return unpack_release(read_release_files(folder), self.base)

    @cached_property
    def foundation(self) -> Release:
        """The population LoRA alone, without experts, router, bank and embedding space.

        What needs nothing else is spared the rest of a release, which holds the same LoRA.
        """
        config = self.config.run_config(self.seed, self.examples)
        nothing = torch.zeros(0, 0)
        return Release(
            version=1,
            base_name=self.base.name,
            base_fingerprint=self.base.fingerprint,
            population=train_population_alone(config, self.folder, self.server),
            experts=(),
            router=Router(nothing, nothing.flatten()),
            bank=(),
            anchors=nothing,
            space=EmbeddingSpace(nothing.flatten(), nothing),
            top_k=0,
            temperature=config.bank.temperature,
            examples=self.examples,
        )

    @cached_property
    def embeddings(self) -> Tensor:
        """Embeddings of the people who are asked, (people, width)."""

        def embed() -> dict[str, Tensor]:
            found = []
            with stage("embed people", len(self.people), "users") as progress, self.base.lock:
                for user in self.people:
                    found.append(embed_user(self.base, user.history))
                    progress.advance(1)
            return {"embeddings": torch.stack(found)}

        return self.finished(f"people-{self.slice}", embed)["embeddings"]

    @cached_property
    def routings(self) -> tuple[Routing, ...]:
        """Where each of the people stands in the release."""
        return tuple(route(self.release, embedding) for embedding in self.embeddings)

    def routings_for(self, method: Method) -> tuple[Routing, ...]:
        """Return where each of the people stands, as far as a method needs to know."""
        return self.routings if method.routed else (NOWHERE,) * len(self.people)

    @cached_property
    def histories(self) -> tuple[tuple[Sample, ...], ...]:
        """What each of the people may learn from."""
        return tuple(
            tuple(history_with_examples(self.base, user.history, self.examples))
            for user in self.people
        )

    @cached_property
    def server_samples(self) -> tuple[tuple[Sample, ...], ...]:
        """What each of the server's users gives to learn from: history and queries."""
        return tuple(given_samples(self.base, user, self.examples) for user in self.server)

    @cached_property
    def server_embeddings(self) -> Tensor:
        """Embeddings of the server's users, (users, width)."""
        _ = self.release  # training it leaves them
        return load_file(self.folder / "training" / "r1" / "embedding.safetensors")["embeddings"]

    @cached_property
    def anchors(self) -> tuple[int, ...]:
        """Which of the server's users are the anchors, in the order of the bank."""
        _ = self.release
        log = json.loads((self.folder / "training" / "r1" / "bank.json").read_text("utf-8"))
        place = {user.user_id: index for index, user in enumerate(self.server)}
        return tuple(place[name] for name in log["anchors"])

    def retrieving(self, count: int, tasks: tuple[str, ...] = ALL_TASKS) -> "Scene":
        """Return the same scene with so many own items before questions of some tasks.

        It is this very scene where nobody is asked such a question.
        """
        users = (*self.server, *self.people)
        asked = {query.task for user in users for query in user.queries}
        asked |= {item.task for user in users for item in user.history}
        found = tuple(task for task in ALL_TASKS if task in asked and task in tasks)
        if not count or not found:
            return self
        examples = Examples(count, self.config.retrieval.item_tokens, found)
        if examples not in self._retrieving:
            folder = self.folder / f"retrieving-{count}-{'-'.join(found)}"
            self._retrieving[examples] = replace(
                self, folder=folder, examples=examples, _retrieving={}
            )
        return self._retrieving[examples]

    def private_seed(self, user: User) -> int:
        """Return the seed of a person's private training: the same for all methods."""
        return derive_seed(self.seed, "private", user.user_id)

    def finished(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of an artefact: those on disk, or else made now and kept."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            write_bytes(path, save({key: t.contiguous() for key, t in make().items()}))
        return load_file(path)


def open_scene(
    config: ComparisonConfig,
    folder: Path,
    base: BaseModel,
    slice_name: str,
    setting: Setting,
    seed: int,
) -> Scene:
    """Return the scene of a slice, a setting and a seed in a comparison's folder."""
    people = divide(config, slice_name, seed, base)
    division = DIVISIONS.get(slice_name, "all")
    return Scene(
        config,
        seed,
        slice_name,
        setting,
        base,
        held_by_server(people, setting),
        people.device,
        folder / "artefacts" / f"{division}-{setting}-{seed}",
    )


def scenes_of(
    config: ComparisonConfig, folder: Path, base: BaseModel
) -> Sequence[Callable[[], Scene]]:
    """Return how to open each scene of a comparison, in the order in which they are gone through.

    Sparse slices have no centralized form: the server would hold the whole history all the same.
    """
    return [
        lambda s=seed, n=name, t=setting: open_scene(config, folder, base, n, t, s)  # type: ignore[misc]
        for seed in config.seeds
        for name in config.slices
        for setting in config.settings
        if setting == "federated" or not name.startswith("sparse")
    ]
