"""What an audit found, in words: the same for terminal and page."""

from collections.abc import Mapping, Sequence
from typing import Any

from shared.byte_size import byte_size
from shared.program import command
from simulations.audit.attack import Attack
from simulations.audit.audit import Audit
from simulations.audit.bank_price import BankPrice
from simulations.audit.egress import Egress
from simulations.audit.sent_statistics import Seen, SeenSum
from simulations.audit.statistics_mechanism import StatisticsEpsilon
from simulations.report.statistics import Estimate
from simulations.report.wording import count_of, decimal, interval

BANK_BUDGET = "bank.dp_epsilon"
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
    mode = audit.config.privacy.mode
    _, local, central = audit.statistics
    given = (local if mode == "local" else central).accounted
    if mode == "off" or given is None:
        return "Their statistics carry no guarantee of differential privacy: privacy.mode is off"
    what = "Their statistics are" if mode == "local" else "The sum of their statistics is"
    return f"{what} ({given.epsilon:.2g}, {given.delta:g})-differentially private by the accountant"


def federation(egress: Egress) -> str:
    """Return what a federation is."""
    return FEDERATIONS[egress.federation]


def searched_for(egress: Egress) -> str:
    """Return how many canaries the devices held, each of them searched for."""
    return f"{sum(egress.canaries.values()):,}"


def found(egress: Egress) -> str:
    """Return how many canaries were found: of those that a contrast sent, ``6 of 6 sent``."""
    if not egress.contrast:
        return f"{len(egress.found):,}"
    text = f"{len(egress.found & egress.sent):,} of {len(egress.sent):,} sent"
    more = len(egress.found - egress.sent)
    return f"{text}, {more:,} more" if more else text


def expected(egress: Egress) -> str:
    """Return what has to be found."""
    return "all sent" if egress.contrast else "none"


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


def seen(audit: Audit) -> str:
    """Say what the server sees of the devices' statistics, what there is to attack, and by what."""
    journals = "" if audit.seen.untold or audit.seen.unheard else "; every journal tells the same"
    return f"{_seen(audit.seen)} This was read off the wire{journals}."


def _seen(found: Seen) -> str:
    if found.mode == "off":
        return f"The server sees the router statistics of each of {found.devices} devices."
    if found.mode == "local":
        return (
            f"The server sees the router statistics of each of {found.devices} devices under noise "
            "of the device's own; the attacks are on what was sent, with the noise."
        )
    return (
        "Router statistics of a single device: none to attack. In privacy.mode central the server "
        f"sees the noised sum over {count_of(found.devices, 'device')} and nothing else of them; "
        f"in what the devices sent, {found.single or 'none'} could be read by itself."
    )


def seen_sum(found: SeenSum) -> str:
    """Say what the server reads off a secure sum, beside the truth."""
    truth = ", ".join(decimal(weight, 2) for weight in found.true_expert_weights)
    if found.expert_weights is None:
        return f"The sum told nothing. Mean expert weights of the devices: {truth}."
    shown = ", ".join(decimal(weight, 2) for weight in found.expert_weights)
    return (
        f"Seen instead: mean expert weights {shown}, from the sum. In truth they are {truth}; the "
        f"noise on each has standard deviation {decimal(found.noise_of_mean, 2)}."
    )


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


def next_step(audit: Audit, folder: str, given: Sequence[str]) -> str:
    """Return the one thing to do now.

    Parameters
    ----------
    given : sequence of str
        Arguments that said what to audit: a further audit is of the same.
    """
    if audit.failures:
        return f"look up the failed lines in {folder}/audit.json, and do not deploy before"
    if audit.bank_privacy is None:
        again = command("audit", *given, "--set", f"{BANK_BUDGET}=8")
        return f"see what a private bank costs your people: `{again}`"
    return f"keep {folder}/audit.json beside the release, to compare later ones with it"
