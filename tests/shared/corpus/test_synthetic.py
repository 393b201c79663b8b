"""The built-in corpus: reproducible, and worth personalising at each level."""

import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from shared.config import CorpusConfig
from shared.corpus.load import load_corpus
from shared.corpus.split import split_users
from shared.corpus.synthetic import SYNTHETIC_TASKS, community_tag, synthetic_users
from shared.corpus.synthetic_worlds import (
    COMMON_TAGS,
    COMMUNITIES,
    EVERYDAY,
    KINDS,
    QUALITIES,
    SIGNATURES,
)
from shared.corpus.user import User
from shared.errors import MesofedError
from shared.tasks import POST_TAGS, TASKS

USERS = synthetic_users(240, 4, seed=3)


def test_same_seed_same_people_in_another_process_and_in_any_company() -> None:
    script = "from shared.corpus.synthetic import *; print(repr(synthetic_users(6, 4, 3)))"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == repr(USERS[:6])
    assert synthetic_users(6, 4, 4) != USERS[:6]


def test_shape_of_a_user() -> None:
    for user in USERS:
        assert 3 <= len(user.history) <= 10 or 12 <= len(user.history) <= 24
        assert Counter(query.task for query in user.queries) == dict.fromkeys(SYNTHETIC_TASKS, 2)
        counts = Counter(item.task for item in user.history)
        assert max(counts.values()) - min(counts[task] for task in SYNTHETIC_TASKS) <= 1
        texts = [item.text for item in user.history] + [query.text for query in user.queries]
        assert len(set(texts)) == len(texts)
        assert all(10 <= len(text.split()) <= 18 for text in texts)
        assert len({item.item_id for item in user.history}) == len(user.history)
        assert len({query.query_id for query in user.queries}) == 6
        for task, answer in answers(user):
            labels = TASKS[task].labels
            if labels is not None:
                assert answer in labels
            else:
                assert 4 <= len(answer.split()) <= 8
    sparse = sum(len(user.history) <= 10 for user in USERS)
    assert 0.3 < sparse / len(USERS) < 0.5
    assert Counter(user.group for user in USERS) == dict.fromkeys(range(4), 60)


def answers(user: User) -> list[tuple[str, str]]:
    items = [(item.task, item.target) for item in user.history]
    return items + [(query.task, query.gold) for query in user.queries]


def everyday(text: str) -> bool:
    return any(words in text for words in (*EVERYDAY.subjects, *EVERYDAY.outings))


def test_about_half_of_the_posts_are_everyday() -> None:
    for user in USERS:
        assert sum(everyday(query.text) for query in user.queries) == 3
        assert sum(everyday(item.text) for item in user.history) == len(user.history) // 2


def test_communities_share_the_common_tags_and_no_other_and_no_style() -> None:
    for one, other in combinations(COMMUNITIES, 2):
        agreed = {kind for kind in KINDS if community_tag(one, kind) == community_tag(other, kind)}
        assert agreed == set(COMMON_TAGS)
        assert one.headline != other.headline
        assert not set(one.world.subjects) & set(other.world.subjects)
    assert {community_tag(c, kind) for c in COMMUNITIES for kind in KINDS} <= set(POST_TAGS)


@pytest.mark.parametrize("groups", [2, 4, 6])
def test_history_reveals_the_group(groups: int) -> None:
    users = synthetic_users(66, groups, seed=11)
    texts = [" ".join(i.text for i in user.history[-16:]) for user in users]
    found = KMeans(groups, n_init=50, random_state=0).fit_predict(
        TfidfVectorizer().fit_transform(texts)
    )
    assert adjusted_rand_score([user.group for user in users], found) >= 0.9


def bag_of_words(users: list[User], task: str) -> tuple[CountVectorizer, LogisticRegression]:
    items = [item for user in users for item in user.history if item.task == task]
    words = CountVectorizer(ngram_range=(1, 2))
    counts = words.fit_transform([item.text for item in items])
    model = LogisticRegression(C=10, max_iter=2000).fit(counts, [item.target for item in items])
    return words, model


def test_tags_of_everyday_posts_need_the_group_and_then_the_person() -> None:
    train, test = list(USERS[:140]), list(USERS[140:])
    words, population = bag_of_words(train, "tagging")
    by_group = {
        group: bag_of_words([user for user in train if user.group == group], "tagging")
        for group in range(4)
    }
    hits: dict[str, list[bool]] = {"population": [], "group": [], "quirk": []}
    for user in test:
        for query in user.queries:
            if query.task != "tagging" or not everyday(query.text):
                continue
            assert user.group is not None
            group_words, group_model = by_group[user.group]
            hits["population"].append(
                population.predict(words.transform([query.text]))[0] == query.gold
            )
            by_habit = group_model.predict(group_words.transform([query.text]))[0]
            hits["group"].append(by_habit == query.gold)
            subject = next(s for s in EVERYDAY.subjects if s in query.text)
            own = [i.target for i in user.history if i.task == "tagging" and subject in i.text]
            repeated = len(own) > 1 and len(set(own)) == 1
            hits["quirk"].append((own[0] if repeated else by_habit) == query.gold)
    assert np.mean(hits["group"]) > np.mean(hits["population"]) + 0.1
    assert np.mean(hits["quirk"]) > np.mean(hits["group"]) + 0.05


def test_scores_follow_the_person_and_headlines_end_with_their_word() -> None:
    def common(text: str) -> float:
        """Return the score that everyone's sense of quality gives."""
        return 4.0 if any(words in text for words in QUALITIES[+1]) else 2.0

    alone, personal = [], []
    for user in USERS:
        past = [i for i in user.history if i.task == "rating"]
        hand = np.mean([float(item.target) - common(item.text) for item in past])
        for query in user.queries:
            if query.task == "rating":
                alone.append(abs(float(query.gold) - common(query.text)))
                personal.append(abs(float(query.gold) - common(query.text) - hand))
        endings = {a.rsplit(", ")[-1] for task, a in answers(user) if task == "headline"}
        assert len(endings) == 1
        assert endings <= set(SIGNATURES)
    assert np.mean(personal) < np.mean(alone) - 0.1


def test_load_gives_as_many_users_as_asked_and_every_group_on_both_sides() -> None:
    config = CorpusConfig(server_users=8, device_users=4, groups=4)
    corpus = load_corpus(config, seed=3)
    split = split_users(corpus, config, seed=3)
    assert corpus.users == USERS[:12]
    assert {user.group for user in split.server} == {user.group for user in split.device}
    assert (len(split.server), len(split.device)) == (8, 4)


def test_one_task_alone() -> None:
    corpus = load_corpus(CorpusConfig(task="headline", server_users=2, device_users=1), seed=0)
    assert {task for user in corpus.users for task, _ in answers(user)} == {"headline"}
    with pytest.raises(MesofedError, match="tagging, rating, headline"):
        load_corpus(CorpusConfig(task="LaMP_3"), seed=0)


@pytest.mark.parametrize("groups", [1, 7])
def test_impossible_groups_are_refused(groups: int) -> None:
    with pytest.raises(MesofedError, match="2 to 6 groups"):
        synthetic_users(3, groups, 0)
