"""Errors a user can act on. The command line prints them without a traceback and exits with 2."""

from __future__ import annotations

from pathlib import Path


class CounterscanError(Exception):
    """Base of every error that is the caller's to mend."""


class InputError(CounterscanError):
    """Bad input: says which file, which field, what is wrong and what to do about it.

    Args:
        problem: what is wrong, in one clause.
        path: the file it was found in.
        field: the column, tag or option.
        remedy: what the user should do.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | Path | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.path, self.field, self.remedy = problem, path, field, remedy
        where = ": ".join(str(part) for part in (path, field) if part is not None)
        text = f"{where}: {problem}" if where else problem
        super().__init__(f"{text}. {remedy}" if remedy else text)


def line_of(error: BaseException, number: int = 0) -> str:
    """One line of what somebody else's error says, the first by default; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[number]
