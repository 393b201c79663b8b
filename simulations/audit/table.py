"""An audit for the terminal, at most 100 columns wide."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shared.byte_size import byte_size
from simulations.audit import wording
from simulations.audit.audit import Audit


def render_audit(audit: Audit) -> Group:
    """Return headline and tables."""
    style = "bold red" if audit.failures else "bold green"
    return Group(
        Text(wording.headline(audit), style=style),
        _egress(audit),
        _epsilon(audit),
        _attacks(audit),
        _price(audit),
        Text(wording.bank_guarantee(audit.bank_privacy), style="dim"),
    )


def _table(title: str, note: str = "") -> tuple[Table, Group]:
    """Return a table and what is printed for it: title, table, note."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    return table, Group(
        Text(f"\n{title}", style="bold"), table, *([Text(note, style="dim")] if note else [])
    )


def _mark(passed: bool) -> Text:
    return Text("✓" if passed else "✗", style="green" if passed else "bold red")


def _egress(audit: Audit) -> Group:
    table, printed = _table(
        "Egress: canaries found in what left the devices",
        "every reply, what was logged, and every file of the server's run folder; devices of a "
        "contrast send some of their canaries on purpose",
    )
    table.add_column("federation", overflow="fold")
    for heading in ("devices", "searched", "canaries", "found", "expected", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for egress in audit.egress:
        table.add_row(
            wording.federation(egress),
            str(egress.devices),
            byte_size(sum(egress.searched.values())),
            wording.searched_for(egress),
            wording.found(egress),
            wording.expected(egress),
            _mark(egress.passed),
        )
    return printed


def _epsilon(audit: Audit) -> Group:
    empirical = audit.statistics[0].empirical
    table, printed = _table(
        "Epsilon of one device's router statistics",
        f"attacked with {empirical.trials:,} trials of each of two worst cases; lower bounds with "
        f"{empirical.confidence:.0%} confidence",
    )
    for heading in ("noise", "accounted", "proved by attack"):
        table.add_column(heading, overflow="fold")
    table.add_column("", justify="right")
    for attacked in audit.statistics:
        table.add_row(
            attacked.mechanism,
            wording.accounted(attacked),
            wording.proved(attacked),
            _mark(attacked.passed) if attacked.accounted else "",
        )
    return printed


def _attacks(audit: Audit) -> Group:
    table, printed = _table(
        "Membership and attribute inference",
        "AUC with 95 % interval over people; 0.5 is a coin. * no device of Mesofed sends it",
    )
    table.add_column("looks at", no_wrap=True)
    table.add_column("asks", overflow="fold")
    table.add_column("knows besides", overflow="fold")
    table.add_column("AUC", justify="right", no_wrap=True)
    for attack in audit.attacks:
        table.add_row(
            f"{attack.target}{' *' if attack.contrast else ''}",
            attack.question,
            attack.knows,
            wording.auc(attack),
        )
    about = [wording.seen(audit)]
    if audit.seen.sum is not None:
        about.append(wording.seen_sum(audit.seen.sum))
    return Group(printed, *(Text(line) for line in about))


def _price(audit: Audit) -> Group:
    table, printed = _table(
        f"What differential privacy of the bank costs and buys ({audit.price.anchors} anchors)",
        "NLL in nats per token on items of the anchors that nobody was trained on; population "
        f"LoRA alone: {wording.nll(audit.price.population_nll)}",
    )
    for heading in ("epsilon", "noise", "NLL", "membership AUC"):
        table.add_column(heading, justify="right", no_wrap=True)
    for bank in audit.price.banks:
        table.add_row(
            wording.budget(bank),
            wording.noise(bank),
            wording.nll(bank.kept_nll),
            wording.auc(bank.attack),
        )
    return printed
