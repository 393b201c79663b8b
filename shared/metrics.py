"""How answers are judged: the metrics of LaMP for each kind of task.

Accuracy, MAE and ROUGE are means over queries, so they may be taken of one person and averaged
over people. Macro-F1 and RMSE are not: over the few queries of one person, labels that nobody asked
for count as failed, and a root of a mean is no mean of roots. These exist pooled only.
"""

import math
from collections.abc import Sequence

from shared.tasks import Kind

PRIMARY: dict[Kind, tuple[str, bool]] = {
    "classification": ("accuracy", True),
    "rating": ("mae", False),
    "generation": ("rouge_1", True),
}
"""The metric that ranks methods, and whether higher is better."""


def _as_label(prediction: str) -> str:
    return prediction.strip().lower()


def _accuracy(predictions: Sequence[str], golds: Sequence[str]) -> float:
    pairs = zip(predictions, golds, strict=True)
    return sum(_as_label(prediction) == gold for prediction, gold in pairs) / len(golds)


def _macro_f1(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    from sklearn.metrics import f1_score

    places = {label: place for place, label in enumerate(labels)}
    truth = [places[gold] for gold in golds]
    # An answer outside the list is wrong whatever the gold is; -1 is no label's place.
    answers = [places.get(_as_label(prediction), -1) for prediction in predictions]
    return float(
        f1_score(truth, answers, labels=list(range(len(labels))), average="macro", zero_division=0)
    )


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


def _errors(predictions: Sequence[str], golds: Sequence[str]) -> list[float]:
    return [
        parse_score(prediction, gold) - float(gold)
        for prediction, gold in zip(predictions, golds, strict=True)
    ]


def _rouge(predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    pairs = zip(predictions, golds, strict=True)
    scores = [scorer.score(target=gold, prediction=prediction) for prediction, gold in pairs]
    return {
        "rouge_1": sum(score["rouge1"].fmeasure for score in scores) / len(scores),
        "rouge_l": sum(score["rougeL"].fmeasure for score in scores) / len(scores),
    }


def _check(predictions: Sequence[str], golds: Sequence[str]) -> None:
    if not golds or len(predictions) != len(golds):
        raise ValueError(
            f"expected as many predictions as golds, and at least one; "
            f"got {len(predictions)} predictions and {len(golds)} golds"
        )


def score_user(kind: Kind, predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """Judge one person's answers to the queries of one task.

    Parameters
    ----------
    kind : {"classification", "rating", "generation"}
        The task's kind.
    predictions, golds : sequence of str
        What the model answered and what the person did, in the same order.

    Returns
    -------
    dict
        Means over the queries, which may be averaged over people: ``accuracy``; or ``mae`` (in
        scores, 0 to 4); or ``rouge_1`` and ``rouge_l`` (F-measures without stemming, as LaMP has
        it).

    Raises
    ------
    ValueError
        If there is nothing to judge or the lengths differ.
    """
    _check(predictions, golds)
    if kind == "rating":
        errors = _errors(predictions, golds)
        return {"mae": sum(abs(error) for error in errors) / len(errors)}
    if kind == "generation":
        return _rouge(predictions, golds)
    return {"accuracy": _accuracy(predictions, golds)}


def score_pooled(
    kind: Kind,
    predictions: Sequence[str],
    golds: Sequence[str],
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Judge the answers to all queries of one task at once, whoever asked them, as LaMP does.

    Parameters
    ----------
    kind : {"classification", "rating", "generation"}
        The task's kind.
    predictions, golds : sequence of str
        What the model answered and what people did, in the same order.
    labels : sequence of str, optional
        The task's whole label list; macro-F1 is over all of it. Needed for classification alone.

    Returns
    -------
    dict
        What ``score_user`` gives, over all queries; and ``macro_f1`` for classification, ``rmse``
        for ratings.

    Raises
    ------
    ValueError
        If there is nothing to judge, the lengths differ, or classification came without labels.
    """
    scores = score_user(kind, predictions, golds)
    if kind == "rating":
        errors = _errors(predictions, golds)
        scores["rmse"] = math.sqrt(sum(error**2 for error in errors) / len(errors))
    if kind == "classification":
        if labels is None:
            raise ValueError("expected the task's labels for classification; got none")
        scores["macro_f1"] = _macro_f1(predictions, golds, labels)
    return scores
