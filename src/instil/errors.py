"""Every error that instil raises on purpose.

```
InstilError
├── ConfigError             (ValueError)          a setting that is unknown, of the wrong type or out of range
├── DataFileError           (OSError)             a data file that is missing, empty or cannot be read
├── DataFormatError         (ValueError)          binary, mis-encoded or truncated text; a malformed line
├── FieldError              (ValueError)          a row lacks a field, or the field is empty
├── ContextError            (ValueError)          no context, or more demonstrations asked for than there are
├── OverlapError            (ValueError)          an evaluation row is also a demonstration or a training input
├── AlignmentError          (ValueError)          teacher and student prompt do not fit the model or each other
├── ChatTemplateError       (ValueError)          no chat template, or one that cannot render the turns
├── VerbalizerError         (ValueError)          a verbalizer whose labels are, in tokens, not told apart
├── TuningError             (ValueError)          a tuning that the model or the task does not allow
├── TokenizerMismatchError  (ValueError)          teacher and student cut text into different tokens
├── UnknownModelError       (LookupError)         no such model
├── HubUnreachableError     (ConnectionError)     a hub id, and no way to reach the hub
├── OutputExistsError       (FileExistsError)     the output folder is there already
├── OutputError             (OSError)             the output folder cannot be written
├── TargetStoreError        (OSError)             a target store that is missing, unfinished, damaged or of something else
├── UnfinishedRunError      (FileExistsError)     an unfinished run with other settings is in the way
├── DiskFullError           (OSError)             not enough space for the run
├── NotFiniteLossError      (FloatingPointError)  the loss became NaN or infinite
├── LaunchError             (RuntimeError)        several processes that cannot do together what is asked
└── RecoveryError           (RuntimeError)        the student falls short of `min_recovery`
```

A leaf also inherits the standard library's error that it resembles, so `except ValueError` works too.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


class InstilError(Exception):
    """The root of the tree: what is wrong, what was got, what is allowed, how to mend it.

    Args:
        what: What is wrong, in one clause.
        got: What was found.
        allowed: What would have been accepted.
        mend: What to do about it.
    """

    exit_status: ClassVar[int] = 2

    def __init__(self, what: str, *, got: str = "", allowed: str = "", mend: str = "") -> None:
        self.what, self.got, self.allowed, self.mend = what, got, allowed, mend
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.got:
            parts.append(f"got: {self.got}")
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.mend:
            parts.append(f"mend: {self.mend}")
        return "; ".join(parts)


class ConfigError(InstilError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    @classmethod
    def listing(cls, problems: Sequence[str]) -> "ConfigError":
        """One error for all problems of a recipe."""
        return cls(
            f"the recipe has {len(problems)} problem{'s' * (len(problems) > 1)}: "
            + "; ".join(problems),
            mend="see docs/reference/recipe.md",
        )


class DataFileError(InstilError, OSError):
    """A data file is missing, empty or cannot be read."""

    __str__ = InstilError.__str__


class DataFormatError(InstilError, ValueError):
    """A data file is binary, mis-encoded, truncated, or holds a malformed line."""


class FieldError(InstilError, ValueError):
    """A row lacks a field, or the field is empty or of the wrong type."""


class ContextError(InstilError, ValueError):
    """There is no context, or more demonstrations are asked for than there are."""


class OverlapError(InstilError, ValueError):
    """An evaluation row is also a demonstration or a training input."""


class AlignmentError(InstilError, ValueError):
    """A teacher or student prompt does not fit the model, or the two do not fit each other."""


class ChatTemplateError(InstilError, ValueError):
    """The tokenizer has no chat template, or one that cannot render the turns."""


class VerbalizerError(InstilError, ValueError):
    """Two labels' surface forms are the same in tokens, or one begins the other."""


class TuningError(InstilError, ValueError):
    """The model or the kind of run does not allow this tuning."""


class TokenizerMismatchError(InstilError, ValueError):
    """Teacher and student cut text into different tokens."""


class UnknownModelError(InstilError, LookupError):
    """There is no such model."""


class HubUnreachableError(InstilError, ConnectionError):
    """The model is a hub id and the hub cannot be reached."""

    __str__ = InstilError.__str__


class OutputExistsError(InstilError, FileExistsError):
    """The output folder is there already."""

    __str__ = InstilError.__str__


class OutputError(InstilError, OSError):
    """The output folder cannot be written."""

    __str__ = InstilError.__str__


class TargetStoreError(InstilError, OSError):
    """A target store is missing, unfinished or damaged, or was made from something else."""

    __str__ = InstilError.__str__


class UnfinishedRunError(InstilError, FileExistsError):
    """An unfinished run with other settings is in the way."""

    __str__ = InstilError.__str__


class DiskFullError(InstilError, OSError):
    """There is not enough space for the run."""

    __str__ = InstilError.__str__


class NotFiniteLossError(InstilError, FloatingPointError):
    """The loss became NaN or infinite."""

    exit_status = 1


class LaunchError(InstilError, RuntimeError):
    """Several processes were started that do not find each other, or for what only one can do."""


class RecoveryError(InstilError, RuntimeError):
    """The run is whole, but the student falls short of `min_recovery`."""

    exit_status = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a message: the known name that is nearest, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(repr, known))}"
