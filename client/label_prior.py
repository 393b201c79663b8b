"""The label prior: how often a person chose each label, which the history tells without training.

    score of a label  =  likelihood under the model  x  frequency in the person's history

The base model and the shared parts say what a text is like; what they cannot know is that this
person writes about politics alone, or never gives five stars. Where labels have other frequencies
than where a model was trained, the ratio of the frequencies sets it right (Saerens, Latinne and
Decaestecker, 2002, equation 2.4). This is a simpler form, a heuristic: it takes the frequencies
among the server's users for even, and under a private part that was trained on the same history
it counts that history twice (docs/research-log.md shows what it gains and costs).

It is a handful of counts, costs no training and no time, and takes part in the choice among labels
alone: log-likelihoods of answers are the model's own.
"""

from collections import Counter
from collections.abc import Sequence

from shared.corpus.user import ProfileItem
from shared.tasks import TASKS

# Pseudo-count, spread over all labels: nobody's label is ever impossible. Strengths of 0.25 to 1.5
# and pseudo-counts of 1, 3 and one a label were compared on server users (docs/research-log.md).
PSEUDO_COUNT = 1.0


def label_prior(history: Sequence[ProfileItem], task_name: str) -> dict[str, float] | None:
    """Return the probability of each label for a person.

    Parameters
    ----------
    history : sequence of ProfileItem
        The person's own.
    task_name : str
        Of the query.

    Returns
    -------
    dict of float or None
        By label; they sum to one. None where the history does not choose among the labels of the
        query.
    """
    labels = TASKS[task_name].history_labels
    if labels is None:
        return None
    counts = Counter(item.target for item in history if item.task == task_name)
    chosen = sum(counts[label] for label in labels)
    return {
        label: (counts[label] + PSEUDO_COUNT / len(labels)) / (chosen + PSEUDO_COUNT)
        for label in labels
    }
