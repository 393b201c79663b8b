"""The device: one person's base model, vault and current release, and what they do together."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from client.answers import generate
from client.evaluation import evaluate_stacks
from client.personalize import Personalised, Routing, begin_personalising, compose, route
from client.stacking import stacked
from client.vault import Vault
from shared.base_model import BaseModel
from shared.compute import compute
from shared.config import PrivacyConfig, PrivateConfig
from shared.embedding import embed_user
from shared.errors import MesofedError
from shared.lora.lora import LinearMap, Lora
from shared.methods import METHODS, method_named
from shared.noise import Randomness, system_randomness
from shared.program import command
from shared.protocol import RouterStatistics, as_sent
from shared.release import Release, unpack_release
from shared.release_files import MANIFEST, verify_files
from shared.retrieval import before, history_with_examples, roomier, task_of
from shared.routing import normalised_entropy
from shared.samples import encode_prompt, task_room
from shared.seeding import derive_seed
from shared.signature import verify_signature


@dataclass(frozen=True)
class Device:
    """One person's side.

    Attributes
    ----------
    base : BaseModel
        The resident base model; other devices of a simulation share it.
    vault : Vault
        The person's private state.
    methods : tuple of str
        Methods to personalise by: one on a real device, several in a comparison.
    private : PrivateConfig
        How the private parts are trained.
    seed : int
        Of the run.
    privacy : PrivacyConfig
        What the device tells of its statistics at most, whatever a server asks.
    randomness : callable
        Where noise comes from: the operating system, but for a simulation's devices.
    """

    base: BaseModel
    vault: Vault
    methods: tuple[str, ...]
    private: PrivateConfig
    seed: int
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    randomness: Randomness = system_randomness

    def install(self, files: Mapping[str, bytes]) -> int:
        """Verify a release and keep it; return its version.

        Raises
        ------
        MesofedError
                If the release is not signed by the server that the vault trusts, not what its
            manifest says, not for this base model, or neither newer than the installed one nor
            the same; the vault then keeps what it has.
        """
        return compute(lambda: self._install(files))

    def prepare(self) -> None:
        """Do ahead what answers would wait for: read and embed the history.

        Raises
        ------
        MesofedError
            If the vault has no person in it.
        """
        compute(self._embedding)

    def personalise(self) -> None:
        """Personalise by every method for the installed release, and keep each as it is done.

        What is already trained for this release under these settings is kept, so a round may be
        asked for again.
        Other devices of this process that are at it are company: who trains in one batch with
        whom changes the time it takes, and no result.
        """
        release = self.release()
        waiting = compute(lambda: self._begin(release))
        for method in list(waiting):
            trained = waiting.pop(method)()
            tensors = trained.private.tensors() if trained.private is not None else {}
            self.vault.save_private(
                release.version,
                method,
                {**tensors, "weights": trained.weights},
                {
                    "settings": self.settings_of(method),
                    "curve": trained.curve,
                    "tokens": trained.tokens,
                    "seconds": trained.seconds,
                },
            )

    def release(self) -> Release:
        """Return the installed release; it is read and verified unless the process holds it so.

        What is held stays as it was verified, whatever becomes of the files.

        Raises
        ------
        MesofedError
            If no release is installed, or it is lost or damaged.
        """
        return compute(
            lambda: (
                _held(self.vault.manifest(), self.base)
                or _unpacked(self.vault.whole_release(), self.base)
            )
        )

    def statistics(self) -> RouterStatistics:
        """Return the router statistics of the installed release.

        They are all that leaves a device, and leave it with noise where its privacy mode says so.
        """
        return compute(self._statistics)

    def personalised(self, method: str, release: Release | None = None) -> Personalised:
        """Return the stack of a method, as trained for the installed release.

        Raises
        ------
        MesofedError
            If the method is not declared or has not been trained on this device, or what it has
            trained is damaged.
        """
        declared = method_named(method)
        release = release or self.release()
        start, tuned = compose(release, declared, self._routing(release))
        if not declared.trains:
            return start
        found = self._trained(release.version, method)
        if found is None:
            raise MesofedError(
                f"Expected {method} to be trained for release {release.version} on this device; "
                f"{self._untrained(release.version, method)}"
            )
        tensors, log = found
        weights = tensors.pop("weights")
        return replace(
            start,
            weights=weights,
            private=Lora.from_tensors(tensors) if tensors else None,
            tuned=int(tuned.sum()),
            curve=tuple((int(step), float(loss)) for step, loss in log["curve"]),
            tokens=log["tokens"],
            seconds=log["seconds"],
        )

    def evaluate(self, method: str) -> dict[str, Any]:
        """Answer the person's own queries by a method, and score the answers.

        Returns
        -------
        dict
            The method's entry in the device's result: cost, curve, answers, scores by task.
        """
        person, stack = self.vault.person(), self.personalised(method)
        return evaluate_stacks(self.base, [person], [stack])[0]

    def answer(self, method: str, prompt: str, max_new_tokens: int = 64) -> str:
        """Continue a prompt with the personalised model.

        A prompt that is put as the queries of a task whose questions have own items before them
        gets them here too.
        """
        stack = self.personalised(method)
        base, room = self.base, min(max_new_tokens, self.base.max_tokens // 2)
        found = task_of(prompt, stack.examples.tasks) if stack.examples.count else None
        if found is not None:
            task, question = found
            room = task_room(base, task)  # cut as it was learnt
            own = [item for item in self.vault.person().history if item.task == task.name]
            prompt = before(base, prompt, room, question, own, stack.examples)
            base = roomier(base, stack.examples)
        read = len(encode_prompt(base, prompt, room))
        with stacked(base, [stack], read, max_new_tokens) as parts:
            return generate(base, parts, [[prompt]], max_new_tokens, room)[0][0]

    def _install(self, files: Mapping[str, bytes]) -> int:
        pinned = self.vault.trusted()
        key = verify_signature(files, pinned)
        release = _unpacked(files, self.base)
        self._check_order(release.version, files)
        self.vault.install(release.version, files)
        if key != pinned:  # the server has a new key, and the old one says so
            self.vault.trust(key)
        return release.version

    def _begin(self, release: Release) -> dict[str, Callable[[], Personalised]]:
        """Start the training of what is not trained yet; return what to wait for, by method."""
        person, routing = self.vault.person(), self._routing(release)
        # One seed for all methods: what differs between them is the method alone.
        seed = derive_seed(self.seed, "private", person.user_id, release.version)
        missing = [
            name
            for name in self.methods
            if METHODS[name].trains and self._trained(release.version, name) is None
        ]
        if not missing:
            return {}
        samples = tuple(history_with_examples(self.base, person.history, release.examples))
        return {
            name: begin_personalising(
                self.base,
                release,
                METHODS[name],
                routing,
                samples,
                self.private,
                seed,
                1 / len(missing),
            )
            for name in missing
        }

    def _trained(
        self, version: int, method: str
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what a method has trained under the present settings, or None."""
        found = self.vault.load_private(version, method)
        if found is None or found[1].get("settings") != self.settings_of(method):
            return None
        return found

    def _untrained(self, version: int, method: str) -> str:
        """Say why there is nothing that a method has trained, and what to do.

        Raises
        ------
        DamagedError
            If there is, and it is damaged.
        """
        if self.vault.read_private(version, method) is not None:
            return (
                "it is, but under other settings (private.*, adapt, base.* or seed). Name the file "
                "with the settings that it was trained with: --config FILE. On another machine "
                f"base.format=auto may come to another format; here it is {self.base.format}."
            )
        if method in self.methods:
            return f"it is not yet. `{command('device', 'start')}` trains it."
        return (
            f"it is not. The settings name {', '.join(self.methods)}: ask for one of these, or add "
            f"{method} to `methods` and start the agent again."
        )

    @property
    def _eyes(self) -> str:
        """Digest of what an embedding of the same history depends on."""
        held = self.base.format
        # That quantised weights are multiplied in bf16 went without saying.
        other = held in ("int8", "nf4") and self.base.dtype != torch.bfloat16
        return _digest(
            self.base.fingerprint, f"{held} in fp32" if other else held, self.base.max_tokens
        )

    def settings_of(self, method: str) -> str:
        """Return a digest of what a method's training for the same release depends on."""
        maps = [linear.name for linear in self.base.maps]
        private, declared = self.private.model_dump(mode="json"), METHODS[method]
        # Neither a reworded summary nor a new field that this method leaves alone is another one.
        said = {
            part.name: getattr(declared, part.name)
            for part in fields(declared)
            if part.name != "summary" and getattr(declared, part.name) != part.default
        }
        return _digest(self._eyes, maps, private, self.seed, said)

    def _statistics(self) -> RouterStatistics:
        release = self.release()
        routing = self._routing(release)
        anchor_weights = torch.zeros(len(release.bank))
        for index, weight in zip(routing.retrieval.anchors, routing.retrieval.weights, strict=True):
            anchor_weights[index] = weight
        statistics = RouterStatistics(
            release=release.version,
            expert_weights=tuple(routing.experts.tolist()),
            anchor_weights=tuple(anchor_weights.tolist()),
            best_similarity=max(routing.retrieval.similarities),
            entropy=normalised_entropy(routing.experts).item(),
        )
        sent = as_sent(statistics)
        self.vault.save_statistics(release.version, asdict(sent))
        return sent

    def _check_order(self, version: int, files: Mapping[str, bytes]) -> None:
        """Refuse to go back, and to take other contents under a version that is in use."""
        installed = self.vault.installed()
        if installed is None or version > installed:
            return
        try:
            kept = self.vault.release_files()
        except MesofedError:  # lost or damaged: the release may come again
            kept = {}
        same = (
            kept[MANIFEST] == files[MANIFEST] if MANIFEST in kept else kept.items() <= files.items()
        )
        if version < installed or not same:
            raise MesofedError(
                f"Expected a release newer than {installed}, or the very same; got release "
                f"{version}{'' if version < installed else ' with other contents'}. A server "
                "never goes back and never uses a version twice."
            )

    def _routing(self, release: Release) -> Routing:
        return route(release, self._embedding())

    def _embedding(self) -> Tensor:
        """Return the embedding of the history; the vault keeps it, for the history stays."""
        found = self.vault.load_embedding(self._eyes)
        if found is None:
            with self.base.lock:
                found = embed_user(self.base, self.vault.person().history)
            self.vault.save_embedding(self._eyes, found)
        return found


def _digest(*values: object) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# The release that was unpacked last; touched by the computing thread alone.
_last: tuple[bytes, tuple[LinearMap, ...], str, Release] | None = None


def _held(manifest: bytes | None, base: BaseModel) -> Release | None:
    """Return the release that was unpacked last, if it is that of a manifest."""
    wanted = manifest, base.maps, base.fingerprint
    return _last[3] if _last is not None and _last[:3] == wanted else None


def _unpacked(files: Mapping[str, bytes], base: BaseModel) -> Release:
    """Verify a release's files; unpack them unless they are the very same as the last time.

    Devices of one process then share its tensors: that saves memory, and lets them train in one
    batch.
    """
    global _last
    release = _held(files.get(MANIFEST), base)
    if release is not None:
        verify_files(files)  # the manifest holds a hash of every other file
        return release
    release = unpack_release(files, base)
    _last = files[MANIFEST], base.maps, base.fingerprint, release
    return release
