"""Seeds for purposes."""

from hypothesis import given
from hypothesis import strategies as st

from shared.seeding import derive_seed

# Names come from UTF-8 files: no lone surrogates; and the separator itself is no part of one.
NAMES = st.characters(exclude_categories=["Cs"], exclude_characters="\x1f")
PARTS = st.one_of(st.integers(-1000, 1000), st.text(NAMES))


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    # Worked out with sha256sum: changing these numbers changes every result of a run.
    assert derive_seed(7) == 0x7902699BE42C8A8E >> 1
    assert derive_seed(7, "oppu", "user-12") == 0x89E69E321FDAFD85 >> 1


@given(st.integers(0, 2**31), st.lists(PARTS, max_size=4))
def test_seeds_are_what_generators_take(seed: int, purpose: list[str | int]) -> None:
    assert 0 <= derive_seed(seed, *purpose) < 2**63


@given(st.lists(st.tuples(st.integers(0, 99), st.lists(PARTS, max_size=3).map(tuple)), unique=True))
def test_other_seeds_and_purposes_give_other_values(
    purposes: list[tuple[int, tuple[str | int, ...]]],
) -> None:
    written = {(seed, *map(str, purpose)) for seed, purpose in purposes}  # 1 and "1" are the same
    assert len({derive_seed(seed, *purpose) for seed, purpose in purposes}) == len(written)


def test_names_do_not_run_into_each_other() -> None:
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
    assert derive_seed(12, "3") != derive_seed(1, "23")
    assert derive_seed(1, "a", "b") != derive_seed(1, "b", "a")
