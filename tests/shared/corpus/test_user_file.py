"""Users come back from disk exactly as they went."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.corpus.user import ProfileItem, Query, User
from shared.corpus.user_file import read_users, write_users
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(people=st.lists(users, max_size=3))
def test_round_trip_is_exact(tmp_path: Path, people: list[User]) -> None:
    path = tmp_path / "users.jsonl"
    write_users(path, people)
    assert read_users(path) == tuple(people)


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"user_id": "u", "history": [{}], "queries": []}', "3", "[" * 10**5]
)
def test_a_bad_line_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "users.jsonl"
    write_users(path, [User("u", (), ())])
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(MesofedError, match=r"users\.jsonl:2"):
        read_users(path)


def test_a_missing_or_binary_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MesofedError, match="Expected a file of users"):
        read_users(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(MesofedError, match="Expected a file of users"):
        read_users(tmp_path / "binary")
