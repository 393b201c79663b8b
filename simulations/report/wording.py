"""What the numbers say, in words: never a claim that its test does not carry."""

import tomllib
from collections import Counter
from collections.abc import Sequence

from shared.byte_size import byte_size
from shared.privacy_cost import cost_sentences
from shared.program import command
from simulations.report.run import Run
from simulations.report.share_error import ShareErrors
from simulations.report.statistics import MIN_USERS, SIGNIFICANCE, Estimate, Gain
from simulations.report.summary import REFERENCE, Row, Summary

MINUS = "\N{MINUS SIGN}"
NARROW = "\N{NARROW NO-BREAK SPACE}"
CLEAR = f"clear: sign-flip test over users, Holm-corrected, p < {SIGNIFICANCE}"
MARKS = f"* best\n+ {MINUS} clearly better or worse than population\n({CLEAR})"
METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "rouge_1": "ROUGE-1",
    "rouge_l": "ROUGE-L",
}


def clear_mark(gain: Gain | None) -> str:
    """Return + or − where a paired gain over ``population`` is clear, else nothing."""
    if gain is None or not gain.clear:
        return ""
    return "+" if gain.estimate.mean > 0 else MINUS


def metric_name(metric: str) -> str:
    """Return a metric's usual spelling."""
    return METRIC_NAMES.get(metric, metric)


def task_name(task: str) -> str:
    """Return a task's name for a running text."""
    return task.replace("_", " ")


def arrow(higher_is_better: bool) -> str:
    """Return the direction in which a metric improves."""
    return "↑" if higher_is_better else "↓"


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with a true minus sign and no negative zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign; zero has none."""
    text = decimal(value, digits)
    return f"+{text}" if value > 0 and float(f"{value:.{digits}f}") else text


def interval(estimate: Estimate, digits: int = 2) -> str:
    """Return a level's interval as ``[low, high]``; empty where none exists."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{decimal(estimate.low, digits)}, {decimal(estimate.high, digits)}]"


def duration(seconds: float) -> str:
    """Return a time as ``0.8 s``, ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count_of(count: int, noun: str) -> str:
    """Return ``1 device`` or ``3 devices``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def joined(parts: Sequence[str]) -> str:
    """Join parts as a sentence does: ``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _gain_interval(gain: Gain) -> str:
    estimate = gain.estimate
    if estimate.low is None or estimate.high is None:
        return "one user only, so no interval"
    text = f"gain {signed(estimate.low)} to {signed(estimate.high)}"
    if estimate.users < MIN_USERS:
        return f"{text}; {count_of(estimate.users, 'user')}, too few to tell"
    if not gain.clear and (estimate.low > 0 or estimate.high < 0):
        # Without the p-value this would read like a claim withheld.
        text += f"; sign-flip test, Holm-corrected: p = {gain.adjusted_p:.3f}"
    return text


def _change(row: Row) -> str:
    """Say what a method does to one task, or that it cannot be told."""
    gain = row.gain
    what = f"{task_name(row.task)} {metric_name(row.primary)}"
    if gain is None:
        return f"reaches {what} {decimal(row.estimate.mean, 2)}, with nothing to compare it to"
    values = f"from {decimal(gain.reference, 2)} to {decimal(gain.method, 2)}"
    if not gain.clear:
        return f"shows no clear difference in {what}, {values} ({_gain_interval(gain)})"
    verb = "worsens" if gain.estimate.mean < 0 else "raises" if row.higher_is_better else "lowers"
    return f"{verb} {what} {values} ({_gain_interval(gain)})"


STAGE_NAMES = {
    "population": "population LoRA",
    "experts": "group experts",
    "bank": "meta-LoRA bank",
}


def unmeasured(run: Run) -> str:
    """Say what a run without evaluated devices has come to, and why it has no scores."""
    if run.rounds:
        last = run.rounds[-1]
        came = (
            f"Release {last.release} went to {count_of(last.asked, 'device')}, of which "
            f"{last.answered:,} sent router statistics."
        )
    elif run.training:
        names = [STAGE_NAMES[stage.stage] for stage in run.training]
        trained = joined(list(dict.fromkeys(names)))
        came = f"The server has trained {trained}. No statistics have come back yet."
    else:
        came = "Nothing has been trained yet."
    if run.deployed:
        return (
            f"{came} Quality is measured on devices only in a simulation: in a deployment, nobody "
            "but the device sees its person's texts and answers."
        )
    return f"{came} No device has been evaluated yet, so there is nothing to compare."


def headline(summary: Summary) -> str:
    """Say in one sentence what personalisation gained; for a summary with rows."""
    method = summary.featured
    if method is None:
        last = summary.methods[-1]
        rows = [row for row in summary.rows if row.method == last]
        levels = [
            f"{task_name(r.task)} {metric_name(r.primary)} {decimal(r.estimate.mean, 2)}"
            for r in rows
        ]
        return (
            f"No personalised method was run, so there is no gain to report; {last} reaches "
            f"{joined(levels)}."
        )
    rows = [row for row in summary.rows if row.method == method]
    if all(row.gain is None for row in rows):
        levels = [
            f"{task_name(r.task)} {metric_name(r.primary)} {decimal(r.estimate.mean, 2)}"
            for r in rows
        ]
        return (
            f"{method} reaches {joined(levels)}; {REFERENCE} was not run, so there is no gain "
            "to report."
        )
    private = summary.costs[method].private_bytes
    keeps = f"with {byte_size(private)} kept private per user" if private else "with nothing stored"
    changes = joined([_change(row) for row in rows])
    # Said once in full, then understood.
    changes = changes.replace("(gain ", f"(95{NARROW}% interval of the gain: ", 1)
    return f"{method} {changes}, {keeps}."


def traffic_sentence(run: Run) -> str:
    """Say what crossed the wire."""
    traffic = [device for round_ in run.rounds for device in round_.traffic]
    if not traffic:
        return "No round of statistics has been recorded yet."
    ups, downs = [t.bytes_up for t in traffic], [t.bytes_down for t in traffic]

    def span(values: list[int]) -> str:
        low, high = byte_size(min(values)), byte_size(max(values))
        return low if low == high else f"{low} to {high}"

    per_round = " in each round" if len(run.rounds) > 1 else ""
    return (
        f"Each device sent {span(ups)} and received {span(downs)}{per_round}; the release is what "
        "came down, router statistics are all that went up."
    )


def share_error_sentence(found: ShareErrors) -> str:
    """Say what the chart of share errors shows, and how it was made."""
    drawn = (
        "noise drawn again on the devices' own statistics, through the functions that add it"
        if found.known
        else "drawn from the known standard deviation of the noise, around the mean that the last "
        "round ended with"
    )
    own = (
        "This run added no noise."
        if found.own is None
        else f"This run's own budget is epsilon {found.own[1]:g} in mode {found.own[0]}."
    )
    missing = "" if "central" in found.lines else " For mode central there are too few devices."
    return (
        f"How far differential privacy puts the estimated group shares off: the mean absolute "
        f"error of one mean expert weight, expected over {count_of(found.devices, 'device')}, for "
        f"a budget that is shared by {count_of(found.rounds, 'round')}; {drawn}. {own} Who knows "
        f"nothing and takes all shares for equal is off by {decimal(found.guess)}.{missing}"
    )


def answered_sentence(run: Run) -> str:
    """Say how many devices answered, count the reasons of those that did not, and what it cost."""
    lines = []
    for round_ in run.rounds:
        line = f"{round_.answered} of {count_of(round_.asked, 'device')} answered"
        if len(run.rounds) > 1:
            line = f"Round {round_.release}: {line}"
        if round_.refused:
            counts = Counter(reason for _, reason in round_.refused)
            reasons = [f"{count} x {reason}" for reason, count in sorted(counts.items())]
            line += f"; refused: {joined(reasons)}"
        lines.append(line + ".")
    if run.rounds:
        lines += cost_sentences([(round_.release, round_.cost) for round_ in run.rounds])
    return " ".join(lines)


def next_step(run: Run, summary: Summary) -> str:
    """Propose one thing to do, fitted to what the run showed."""
    if not run.finished:
        if run.deployed:
            return "finish the run: call `flwr run` again with the same run-dir."
        return f"finish the run with `{command('simulate', '--resume', run.folder)}`."
    if run.deployed:
        settings = run.folder / "config.toml"
        line = command("simulate", settings, "--set", "rounds.devices=0")
        return f"measure quality with the same settings in a simulation: `{line}`."
    if not summary.rows:
        return (
            "no device that answered has any query to score: look at the corpus with "
            f"`{command('data', 'check')} FILE`."
        )
    method = summary.featured
    if method is None:
        return (
            "run a personalised method too, for example "
            """`--set 'methods=["population", "meso"]'`."""
        )
    rows = [row for row in summary.rows if row.method == method]
    if any(row.gain is None for row in rows):
        return f"add {REFERENCE} to the methods: every gain is measured against it."
    if not all(row.gain is not None and row.gain.clear for row in rows):
        return _settling(run, min(row.estimate.users for row in rows))
    seed = run.record.get("seed")
    other = seed + 1 if isinstance(seed, int) else 1
    return f"see whether the result holds with another seed: `--set seed={other}`."


def _settling(run: Run, users: int) -> str:
    """Say what would settle differences that are open; the built-in corpus makes what is asked."""
    made = not run.record.get("paths", {}).get("corpus")
    took_part = len(run.corpus.server_users) + len(run.corpus.device_users)
    people = "more device users, `--set corpus.device_users=N`"
    spare = made or run.corpus.users > took_part
    if users < MIN_USERS:
        way = people if spare else "more people in the corpus"
        return f"get {way}: with fewer than {MIN_USERS} who are asked no difference can be clear."
    asked = Counter(
        (d.user_id, name) for d in run.devices for name, m in d.methods.items() for _ in m.answers
    )
    most = tomllib.loads(run.config_text).get("corpus", {}).get("max_queries")
    ways = [people] if spare else []
    if made or most in asked.values():  # somebody may have had more
        ways.append("more queries each, `--set corpus.max_queries=N`")
    ways.append("another seed, `--set seed=N`")
    listed = f"{', '.join(ways[:-1])} or {ways[-1]}" if ways[1:] else ways[0]
    return f"settle the open differences with {listed}."
