"""Users come back from bytes exactly as they went."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.corpus.user import ProfileItem, Query, User
from shared.corpus.user_file import dump_users, parse_users
from shared.errors import MesofedError

# Every code point, lone surrogates and line separators too.
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
users = st.builds(
    User,
    texts,
    st.lists(st.builds(ProfileItem, texts, texts, texts, texts), max_size=3).map(tuple),
    st.lists(st.builds(Query, texts, texts, texts, texts), max_size=3).map(tuple),
    st.none() | st.integers(0, 5),
)


@settings(deadline=None)
@given(people=st.lists(users, max_size=3))
def test_round_trip_is_exact(people: list[User]) -> None:
    assert parse_users(dump_users(people), Path("users.jsonl")) == tuple(people)


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"user_id": "u", "history": [{}], "queries": []}', "3", "[" * 10**5]
)
def test_a_bad_line_is_told(line: str) -> None:
    data = dump_users([User("u", (), ())]) + f"{line}\n".encode()
    with pytest.raises(MesofedError, match=r"users\.jsonl:2"):
        parse_users(data, Path("users.jsonl"))


def test_binary_data_is_told() -> None:
    with pytest.raises(MesofedError, match="Expected a file of users"):
        parse_users(b"\xff\xfe", Path("binary"))
