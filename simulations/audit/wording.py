"""What an audit found, in words: the same for terminal and page."""

from collections.abc import Mapping
from typing import Any

from simulations.audit.attack import Attack
from simulations.audit.audit import Audit
from simulations.audit.bank_price import BankPrice
from simulations.audit.egress import Egress
from simulations.audit.statistics_mechanism import StatisticsEpsilon
from simulations.report.statistics import Estimate
from simulations.report.wording import byte_size, count_of, decimal, interval

FEDERATIONS = {
    "mesofed": "Mesofed, most devices with handlers that leak behind the guard",
    "uploads": "contrast: devices upload user LoRAs",
    "unguarded": "contrast: devices raise private texts",
}


def headline(audit: Audit) -> str:
    """Say whether the audit passed, and what it does not promise."""
    if audit.failures:
        return f"Failed: {'; '.join(audit.failures)}."
    ours = next(egress for egress in audit.egress if not egress.contrast)
    return (
        f"No canary in the {byte_size(sum(ours.searched.values()))} that left "
        f"{count_of(ours.devices, 'device')} or that the server kept; the search found every kind "
        f"in the contrasts. {guarantee(audit)}."
    )


def guarantee(audit: Audit) -> str:
    """Say what the configured privacy mode guarantees of the statistics."""
    mode, given = audit.config.privacy.mode, audit.statistics[1].accounted
    if mode == "off" or given is None:
        return "Their statistics carry no guarantee of differential privacy: privacy.mode is off"
    seen = "statistics are" if mode == "local" else "sum of statistics is, which nobody attacked,"
    return (
        f"Their {seen} ({given.epsilon:.2g}, {given.delta:g})-differentially private by the "
        "accountant"
    )


def federation(egress: Egress) -> str:
    """Return what a federation is."""
    return FEDERATIONS[egress.federation]


def found(egress: Egress) -> str:
    """Return what was found of how many canaries, as ``0 of 130``."""
    kinds = {(find.device, find.kind) for find in egress.finds}
    return f"{len(kinds)} of {sum(egress.canaries.values())}"


def expected(egress: Egress) -> str:
    """Return what has to be found."""
    return "all that was sent" if egress.contrast else "none"


def verdict(passed: bool) -> str:
    """Return whether a check passed."""
    return "passed" if passed else "failed"


def accounted(statistics: StatisticsEpsilon) -> str:
    """Return what the accountant guarantees."""
    if statistics.accounted is None:
        return "no guarantee: nothing is added to them"
    given = statistics.accounted
    return (
        f"at most {given.epsilon:.3g} at delta {given.delta:g} over "
        f"{count_of(given.rounds, 'round')}"
    )


def proved(statistics: StatisticsEpsilon) -> str:
    """Return what the attack proves."""
    empirical = statistics.empirical
    text = f"at least {empirical.any_mechanism:.2f} for any mechanism"
    if statistics.accounted is not None:
        text += f", {empirical.gaussian:.2f} for Gaussian noise"
    if not empirical.false_positives + empirical.false_negatives:
        text += f"; all of {2 * empirical.counted:,} trials told apart, more trials prove more"
    return text


def auc(attack: Attack) -> str:
    """Return an area with its interval."""
    return f"{decimal(attack.auc, 2)} [{decimal(attack.low, 2)}, {decimal(attack.high, 2)}]"


def budget(bank: BankPrice) -> str:
    """Return a bank's budget."""
    return "none" if bank.epsilon is None else f"{bank.epsilon:g}"


def noise(bank: BankPrice) -> str:
    """Return a bank's noise multipliers."""
    if bank.noise_multiplier is None:
        return "none"
    low, high = bank.noise_multiplier
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def nll(estimate: Estimate) -> str:
    """Return a mean negative log-likelihood with its interval."""
    return f"{decimal(estimate.mean, 3)} {interval(estimate)}".strip()


def bank_guarantee(privacy: Mapping[str, Any] | None) -> str:
    """Say what the release's own bank guarantees."""
    if privacy is None:
        return "The release's bank was trained without differential privacy: no guarantee."
    budgets = privacy["anchors"].values()
    worst = max(entry["epsilon"] for entry in budgets)
    delta = max(entry["delta"] for entry in budgets)
    return (
        f"The release's meta-LoRAs are ({worst:.3g}, {delta:g})-differentially private for "
        f"{privacy['unit']}, given all else that the release holds: population LoRA, experts, "
        "router and places are trained on the same people without."
    )


def next_step(audit: Audit, folder: str) -> str:
    """Return the one thing to do now."""
    if audit.failures:
        return f"look up the failed lines in {folder}/audit.json, and do not deploy before"
    if audit.bank_privacy is None:
        return "see what a private bank costs your people: mesofed audit --set bank.dp_epsilon=8"
    return f"keep {folder}/audit.json beside the release, to compare later ones with it"
