"""The audit: what leaves devices, what can be inferred from it, and what is guaranteed."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.atomic_file import write_json
from shared.config import RunConfig
from simulations.audit.attack import Attack
from simulations.audit.bank_price import Price, measure_price
from simulations.audit.egress import Egress, measure_egress
from simulations.audit.federations import Ground, lay_ground, run_people
from simulations.audit.inference import measure_inference, release_of
from simulations.audit.sent_statistics import Seen, look_at
from simulations.audit.statistics_mechanism import StatisticsEpsilon, measure_statistics
from simulations.benchmarks.machine import describe_machine
from simulations.benchmarks.measurement import Settings
from simulations.report.wording import count_of

FILE = "audit.json"


@dataclass(frozen=True)
class Audit:
    """What an audit has found.

    Attributes
    ----------
    command : tuple of str
    config : RunConfig
    base, corpus : str
        What it was made with, in words.
    server_users, device_users : int
    machine : dict
    seconds : float
    egress : tuple of Egress
        Our federation first, then the contrasts.
    statistics : (StatisticsEpsilon, StatisticsEpsilon, StatisticsEpsilon)
        The router statistics as they are, under local noise, and in a secure sum.
    seen : Seen
        What the server sees of the devices' statistics in the configured privacy mode.
    attacks : tuple of Attack
    price : Price
    bank_privacy : dict or None
        What the release's own bank guarantees, from its training log; None for nothing.
    """

    command: tuple[str, ...]
    config: RunConfig
    base: str
    corpus: str
    server_users: int
    device_users: int
    machine: dict[str, Any]
    seconds: float
    egress: tuple[Egress, ...]
    statistics: tuple[StatisticsEpsilon, StatisticsEpsilon, StatisticsEpsilon]
    seen: Seen
    attacks: tuple[Attack, ...]
    price: Price
    bank_privacy: dict[str, Any] | None

    @property
    def failures(self) -> tuple[str, ...]:
        """What is not as it has to be, in words; none if the audit passed."""
        found = []
        for egress in self.egress:
            if egress.missed:
                found.append(
                    f"the search missed {', '.join(sorted(egress.missed))} in the contrast "
                    f"{egress.federation}, so its silence elsewhere means nothing"
                )
            elif egress.finds and not egress.contrast:
                kinds = ", ".join(sorted({find.kind for find in egress.finds}))
                found.append(f"canaries left the devices: {kinds}")
            elif egress.never_run:
                found.append(f"faults that were never run: {'; '.join(egress.never_run)}")
            elif egress.honest_failed:
                found.append(
                    f"{count_of(egress.honest_failed, 'device')} without a fault did not answer "
                    "everything, so it is not known that the guard stopped the others' faults"
                )
            elif not egress.passed:
                found.append(
                    f"only {egress.held_back} of {len(egress.faults)} faulty devices were stopped"
                )
        found += [
            f"the attack on the statistics proves more than is accounted for ({attacked.mechanism})"
            for attacked in self.statistics
            if not attacked.passed
        ]
        return (*found, *self.seen.failures)


def run_audit(config: RunConfig, folder: Path, command: list[str]) -> Audit:
    """Make an audit and write ``audit.json``.

    Parameters
    ----------
    folder : Path
        For the audit's federations and results; a new one.

    Raises
    ------
    MesofedError
        As :func:`simulations.audit.federations.lay_ground` does.
    """
    started = time.monotonic()
    machine = describe_machine(Settings(config.base.name, 1, config.threads))
    ground = lay_ground(config, folder)
    release = release_of(ground)
    egress = measure_egress(ground)
    # The ground is laid for one round, and its budget for all that the run would have.
    statistics = measure_statistics(
        len(release.experts), len(release.bank), ground.config, len(ground.devices)
    )
    people = run_people(ground)
    audit = Audit(
        command=tuple(command),
        config=ground.config,
        base=f"{ground.base.name}, {ground.base.format}",
        corpus=ground.origin,
        server_users=len(ground.server),
        device_users=len(ground.devices),
        machine=machine,
        egress=egress,
        statistics=statistics,
        seen=look_at(people, ground.config.privacy.mode),
        attacks=measure_inference(ground, people),
        price=measure_price(ground, release),
        bank_privacy=_bank_privacy(ground),
        seconds=time.monotonic() - started,
    )
    write_json(folder / FILE, as_json(audit))
    return audit


def as_json(audit: Audit) -> dict[str, Any]:
    """Return an audit as ``audit.json`` holds it."""
    data = asdict(audit)
    data["config"] = audit.config.model_dump(mode="json")
    data["passed"], data["failures"] = not audit.failures, list(audit.failures)
    for entry, egress in zip(data["egress"], audit.egress, strict=True):
        entry |= {"passed": egress.passed, "contrast": egress.contrast}
        entry |= {"sent": len(egress.sent), "missed": sorted(egress.missed)}
    for entry, attacked in zip(data["statistics"], audit.statistics, strict=True):
        entry["passed"] = attacked.passed
    return data


def _bank_privacy(ground: Ground) -> dict[str, Any] | None:
    path = ground.server_run / "training" / "r1" / "bank.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get("privacy")
    return found
