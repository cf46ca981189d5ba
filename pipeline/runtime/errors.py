"""What can go wrong in a way that a person can act on."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Bad input. The message says which setting or file, what was found, what was expected and what to do.

    Command lines print the message without a traceback and exit with 2.
    """


class NonFiniteError(Exception):
    """Training met losses or gradients that are not finite more often than its policy allows. Exit code 76."""


class RendezvousError(UserError):
    """Processes that train together did not find each other; another try may succeed. Exit code 78."""


class Incomplete(UserError):
    """A file or directory that is not finished, or is damaged: it names what is missing or wrong."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that a misspelt word is near to."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'batch'?" with the nearest of `known`, or "" where nothing is near."""
    near = nearest(word, known)
    return meant([near]) if near else ""


def meant(names: Sequence[str]) -> str:
    """ " Did you mean 'a' or 'b'?" of one name or several."""
    *first, last = [f"'{name}'" for name in names]
    return f" Did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
