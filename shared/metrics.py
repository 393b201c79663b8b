"""How answers are judged: one function, the metrics of LaMP for each kind of task."""

import math
from collections.abc import Sequence

from shared.tasks import Kind

PRIMARY: dict[Kind, tuple[str, bool]] = {
    "classification": ("accuracy", True),
    "rating": ("mae", False),
    "generation": ("rouge_1", True),
}
"""The metric that ranks methods, and whether higher is better."""


def _classification(
    predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    places = {label: place for place, label in enumerate(labels)}
    truth = [places[gold] for gold in golds]
    # An answer outside the list is wrong whatever the gold is; -1 is no label's place.
    answers = [places.get(prediction.strip().lower(), -1) for prediction in predictions]
    macro = f1_score(
        truth, answers, labels=list(range(len(labels))), average="macro", zero_division=0
    )
    return {"accuracy": float(accuracy_score(truth, answers)), "macro_f1": float(macro)}


def parse_score(prediction: str, gold: str) -> float:
    """Return the score that an answer stands for.

    An answer that is no number from 1 to 5 counts as the farther of 1 and 5 from the gold, and as
    5 when both are as far (LaMP, evaluation of LaMP-3).
    """
    try:
        score = float(prediction)
    except ValueError:
        score = math.nan
    if 1 <= score <= 5:
        return score
    return 1.0 if float(gold) > 3 else 5.0


def _rating(predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    errors = [
        parse_score(prediction, gold) - float(gold)
        for prediction, gold in zip(predictions, golds, strict=True)
    ]
    return {
        "mae": sum(abs(error) for error in errors) / len(errors),
        "rmse": math.sqrt(sum(error**2 for error in errors) / len(errors)),
    }


def _generation(predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    pairs = zip(predictions, golds, strict=True)
    scores = [scorer.score(target=gold, prediction=prediction) for prediction, gold in pairs]
    return {
        "rouge_1": sum(score["rouge1"].fmeasure for score in scores) / len(scores),
        "rouge_l": sum(score["rougeL"].fmeasure for score in scores) / len(scores),
    }


def score(
    kind: Kind,
    predictions: Sequence[str],
    golds: Sequence[str],
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Judge the answers to one or more queries of one task.

    Parameters
    ----------
    kind : {"classification", "rating", "generation"}
        The task's kind.
    predictions, golds : sequence of str
        What the model answered and what the person did, in the same order.
    labels : sequence of str, optional
        The task's whole label list; macro-F1 is over all of it. Needed for classification alone.

    Returns
    -------
    dict
        ``accuracy`` and ``macro_f1``; or ``mae`` and ``rmse`` (in scores, 0 to 4); or ``rouge_1``
        and ``rouge_l`` (F-measures without stemming, as LaMP has it, mean over the queries).

    Raises
    ------
    ValueError
        If there is nothing to judge, the lengths differ, or classification came without labels.
    """
    if not golds or len(predictions) != len(golds):
        raise ValueError(
            f"expected as many predictions as golds, and at least one; "
            f"got {len(predictions)} predictions and {len(golds)} golds"
        )
    if kind == "rating":
        return _rating(predictions, golds)
    if kind == "generation":
        return _generation(predictions, golds)
    if labels is None:
        raise ValueError("expected the task's labels for classification; got none")
    return _classification(predictions, golds, labels)
