"""Server corpus and device users never overlap."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import CorpusConfig
from shared.corpus.load import Corpus, load_corpus
from shared.corpus.split import server_users, split_users
from shared.corpus.user import ProfileItem, Query, User
from shared.errors import MesofedError


def person(user_id: str, items: int = 1, queries: int = 1) -> User:
    return User(
        user_id,
        tuple(ProfileItem(f"i{n}", "writing", "", f"{user_id} t{n}") for n in range(items)),
        tuple(Query(f"q{n}", "writing", f"x{n}", "g") for n in range(queries)),
    )


def corpus(user_ids: list[str]) -> Corpus:
    return Corpus(tuple(person(user_id) for user_id in user_ids), (), "a test")


@given(
    user_ids=st.lists(st.text(), min_size=3, max_size=40, unique=True),
    seed=st.integers(0, 2**32),
    server=st.integers(2, 30),
    device=st.integers(1, 30),
    source=st.sampled_from(["synthetic", "jsonl"]),
)
def test_no_person_is_on_both_sides(
    user_ids: list[str], seed: int, server: int, device: int, source: str
) -> None:
    config = CorpusConfig(source=source, server_users=server, device_users=device)  # type: ignore[arg-type]
    split = split_users(corpus(user_ids), config, seed)
    server_ids = [user.user_id for user in split.server]
    device_ids = [user.user_id for user in split.device]
    assert not set(server_ids) & set(device_ids)
    assert set(server_ids) | set(device_ids) <= set(user_ids)
    assert len(set(server_ids + device_ids)) == len(server_ids + device_ids)
    assert 2 <= len(server_ids) <= server
    assert 1 <= len(device_ids) <= device
    assert len(server_ids + device_ids) == min(len(user_ids), server + device)


@given(st.integers(0, 1000), st.randoms())
def test_order_in_the_file_does_not_matter(seed: int, rng: object) -> None:
    config = CorpusConfig(source="jsonl", server_users=6, device_users=3)
    ids = [f"user {n}" for n in range(20)]
    mixed = ids.copy()
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    assert split_users(corpus(ids), config, seed) == split_users(corpus(mixed), config, seed)


def test_the_seed_decides() -> None:
    config = CorpusConfig(source="jsonl", server_users=6, device_users=3)
    users = corpus([f"user {n}" for n in range(20)])
    splits = {split_users(users, config, seed) for seed in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize(
    ("users", "sizes"), [(89, (48, 18)), (66, (48, 18)), (20, (15, 5)), (3, (2, 1)), (4, (3, 1))]
)
def test_sizes(users: int, sizes: tuple[int, int]) -> None:
    config = CorpusConfig(source="jsonl", server_users=48, device_users=18)
    split = split_users(corpus([str(n) for n in range(users)]), config, 0)
    assert (len(split.server), len(split.device)) == sizes


def test_few_server_users_wanted_still_leaves_two() -> None:
    config = CorpusConfig(source="jsonl", server_users=2, device_users=20)
    split = split_users(corpus([str(n) for n in range(5)]), config, 0)
    assert (len(split.server), len(split.device)) == (2, 3)


def test_the_newest_items_and_queries_are_used() -> None:
    users = tuple(person(str(n), items=5, queries=4) for n in range(3))
    config = CorpusConfig(source="jsonl", max_history=2, max_queries=3)
    split = split_users(Corpus(users, (), "a test"), config, 0)
    for user in (*split.server, *split.device):
        assert [item.item_id for item in user.history] == ["i3", "i4"]
        assert [query.query_id for query in user.queries] == ["q1", "q2", "q3"]


def test_too_few_users_are_refused() -> None:
    with pytest.raises(MesofedError, match="at least 3 users"):
        split_users(corpus(["a", "b"]), CorpusConfig(source="jsonl"), 0)


def with_history(user_id: str, *scores: tuple[str, str]) -> User:
    items = (ProfileItem(f"{user_id}{n}", "rating", *score) for n, score in enumerate(scores))
    return replace(person(user_id), history=tuple(items))


ALIEN, BRAZIL, CLUE, DUNE = ("Alien", "5"), ("Brazil", "3"), ("Clue", "4"), ("Dune", "2")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((ALIEN, BRAZIL, CLUE), (ALIEN, BRAZIL, CLUE), True),
        ((ALIEN, BRAZIL, CLUE), (CLUE, ALIEN, BRAZIL), True),
        ((ALIEN,), (ALIEN,), True),
        ((ALIEN, BRAZIL, CLUE), (ALIEN, BRAZIL, CLUE, DUNE), True),  # the same person, later
        ((ALIEN, BRAZIL), (ALIEN, BRAZIL, CLUE), False),
        ((ALIEN, BRAZIL, CLUE, DUNE), (DUNE, ALIEN, BRAZIL, CLUE, ("Eraserhead", "1")), False),
        ((ALIEN, BRAZIL, CLUE), (ALIEN, BRAZIL, ("Clue", "1")), False),
        ((ALIEN, BRAZIL, CLUE), (ALIEN, ALIEN, BRAZIL, CLUE), False),
        ((ALIEN,), (ALIEN, BRAZIL, CLUE, DUNE), False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_one_history_on_both_sides_is_refused(
    one: tuple[tuple[str, str], ...],
    other: tuple[tuple[str, str], ...],
    same: bool,
    turned: bool,
) -> None:
    pair = [with_history("left", *one), with_history("right", *other)]
    # Synthetic users are taken as they come: the first two go to the server.
    users = (person("a"), *(reversed(pair) if turned else pair), person("b"))
    config = CorpusConfig(server_users=2, device_users=2, max_history=1)
    if same:
        with pytest.raises(MesofedError, match=r"history on both.*'(left|right)'.*'(left|right)'"):
            split_users(Corpus(users, (), "a test"), config, 0)
    else:
        assert len(split_users(Corpus(users, (), "a test"), config, 0).device) == 2


def test_one_history_twice_on_one_side_is_no_leak() -> None:
    twins = (with_history("left", ALIEN, BRAZIL, CLUE), with_history("right", ALIEN, BRAZIL, CLUE))
    config = CorpusConfig(server_users=2, device_users=2)
    users = Corpus((*twins, person("a"), person("b")), (), "a test")
    assert split_users(users, config, 0).server == twins


def test_synthetic_people_have_histories_of_their_own() -> None:
    config = CorpusConfig(server_users=32, device_users=64)
    for seed in range(5):
        split = split_users(load_corpus(config, seed), config, seed)
        assert (len(split.server), len(split.device)) == (32, 64)


def test_one_id_twice_is_refused_when_it_falls_on_both_sides() -> None:
    users = corpus(["a", "b", "c", "a"])
    with pytest.raises(MesofedError, match="both"):
        split_users(users, CorpusConfig(server_users=2, device_users=2), 0)


def test_a_corpus_of_the_server_alone_goes_to_it_newest_first_and_cut() -> None:
    config = CorpusConfig(source="jsonl", server_users=5, max_history=2, max_queries=1)
    people = Corpus(tuple(person(f"user {n}", items=4, queries=3) for n in range(8)), (), "a test")
    chosen = server_users(people, config, 3)
    assert len(chosen) == 5
    assert [i.item_id for i in chosen[0].history] == ["i2", "i3"]
    assert [q.query_id for q in chosen[0].queries] == ["q2"]
    everyone = server_users(people, config.model_copy(update={"server_users": 99}), 3)
    assert {user.user_id for user in everyone} == {f"user {n}" for n in range(8)}
    assert everyone[:5] == chosen
