"""Anchor users: the few server users whose meta-LoRAs stand for all (MTA, stage 1a).

MTA takes the longest history of each cluster; here the anchor is the user nearest to the
cluster's centre among those with enough history, so that it speaks for its neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from shared.config import require_anchor


def select_anchors(
    places: Tensor,
    history_lengths: Sequence[int],
    count: int,
    min_history: int,
    seed: int,
    user_weights: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """Choose at most ``count`` anchors, one a cluster.

    Parameters
    ----------
    places : Tensor, (users, k)
        The server's users in the embedding space.
    history_lengths : sequence of int
        Items of each user.
    count : int
        Clusters to form.
    min_history : int
        An anchor has at least so many items; a cluster without such a user has no anchor.
    seed : int
        Of the clustering.
    user_weights : sequence of float, optional
        How much each user counts in the clustering.

    Raises
    ------
    MesofedError
        If no user has enough history.
    """
    require_anchor(min_history, history_lengths)
    points = places.numpy()
    means = _clusters(places, count, seed, user_weights)
    labels = means.labels_
    distances = np.linalg.norm(points - means.cluster_centers_[labels], axis=1)
    distances[np.asarray(history_lengths) < min_history] = np.inf
    anchors = []
    for cluster in range(means.n_clusters):
        members = np.flatnonzero(labels == cluster)
        nearest = members[np.argmin(distances[members])]
        if np.isfinite(distances[nearest]):
            anchors.append(int(nearest))
    return tuple(sorted(anchors))


def cluster_centres(places: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return at most ``count`` unit centres, (c, k), and the cluster of each user (users,)."""
    means = _clusters(places, count, seed)
    centres = torch.from_numpy(means.cluster_centers_).float()
    return torch.nn.functional.normalize(centres, dim=1), torch.from_numpy(means.labels_).long()


def _clusters(
    places: Tensor, count: int, seed: int, user_weights: Sequence[float] | None = None
) -> KMeans:
    # With fewer places than clusters some clusters would be empty: nobody to train or to choose.
    distinct = len(torch.unique(places, dim=0))
    means = KMeans(min(count, distinct), n_init=10, random_state=seed % 2**32)
    return means.fit(places.numpy(), sample_weight=user_weights)
