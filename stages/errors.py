"""The mistakes a user can make, each told in one sentence: where, what is wrong, what to do."""

from collections.abc import Sequence
from pathlib import Path

# Names that a sentence lists, of however many.
MOST_LISTED = 10


class UserError(Exception):
    """A mistake in what the user gave.

    Args:
        what: what is wrong, in words, without a full stop.
        where: the file or option at fault.
        do: what would mend it, as an imperative ("run `nsf extract`").
    """

    def __init__(self, what: str, *, where: str | Path | None = None, do: str | None = None):
        super().__init__(what)
        self.what, self.where, self.do = what, where, do

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where is not None else ""
        remedy = f"; {self.do}" if self.do else ""
        # One line whatever a library put into its own message, and one mark at its end.
        sentence = " ".join(f"{place}{self.what}{remedy}".split())
        return sentence if sentence.endswith("?") else f"{sentence}."


class MissingFile(UserError):
    """A file or folder that a stage reads is not there."""


class WrongArtifact(UserError):
    """A file is not the artifact it is given for: another stage's, another format's, or damaged."""


class Mismatch(UserError):
    """Artifacts that are right one by one do not fit each other."""


class BadValues(UserError):
    """An artifact's numbers cannot be used: not finite, out of range, a class with no sample, no sample at all."""


class BadParameter(UserError):
    """A key of params.yaml or an option's value is unknown, of the wrong type, or out of range."""


class BadData(UserError):
    """A data set's files are not laid out as its reader expects."""


class BadModel(UserError):
    """A model cannot be built, loaded, or split into encoder and linear head."""


class CannotWrite(UserError):
    """An output cannot be written where it was asked for."""


class WorkerLost(UserError):
    """Another process of a run of several has ended before its time."""


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: the first of them, and how many more there are."""
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
