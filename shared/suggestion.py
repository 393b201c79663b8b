"""What a misspelt word may have meant."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

# Words with less in common are not one another's misspelling.
_ALIKE = 0.7


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'base'?)``, or nothing where no known word is like it."""
    found = get_close_matches(word, list(known), 1, _ALIKE)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_choices(chosen: Collection[str], known: Collection[str]) -> None:
    """Refuse an empty choice, and words that are not known.

    Raises
    ------
    ValueError
        With all that is known, what came, and what it may have meant.
    """
    unknown = [f"{word!r}{suggestion(word, known)}" for word in chosen if word not in known]
    if unknown or not chosen:
        came = ", ".join(unknown) or "none"
        raise ValueError(f"expected some of {', '.join(known)}; got {came}")
