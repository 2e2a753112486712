"""Every error that instil raises on purpose.

```
InstilError
├── ConfigError             (ValueError)          an unknown setting, or a wrong value
├── DataFileError           (OSError)             a data file that is missing, empty or unreadable
├── DataFormatError         (ValueError)          a damaged or malformed data file
├── FieldError              (ValueError)          a row lacks a field, or the field is empty
├── ContextError            (ValueError)          no context, or too few rows for the demonstrations
├── OverlapError            (ValueError)          an evaluation row is also used for training
├── AlignmentError          (ValueError)          prompts that do not fit the model or each other
├── ChatTemplateError       (ValueError)          no chat template, or it cannot render the turns
├── VerbalizerError         (ValueError)          two labels of a verbalizer have the same tokens
├── TuningError             (ValueError)          a tuning that the model or the task does not allow
├── TokenizerMismatchError  (ValueError)          teacher and student have different tokenizers
├── UnknownModelError       (LookupError)         no such model
├── HubUnreachableError     (ConnectionError)     the hub cannot be reached
├── ServerError             (ConnectionError)     a server does not answer, such as a judge's
├── EngineError             (RuntimeError)        an engine that does not start or computes wrongly
├── OutputExistsError       (FileExistsError)     the output folder already exists
├── OutputError             (OSError)             the output folder cannot be written
├── TargetStoreError        (OSError)             a target store that is missing or damaged
├── UnfinishedRunError      (FileExistsError)     the folder has an unfinished, different run
├── DiskFullError           (OSError)             not enough disk space for the run
├── NotFiniteLossError      (FloatingPointError)  the loss became NaN or infinite
├── LaunchError             (RuntimeError)        several processes that cannot do the work together
└── GateError               (RuntimeError)        the student does not keep a limit
```

Each error also inherits from the standard error in brackets, so `except ValueError` works too.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


class InstilError(Exception):
    """Base class of all errors of instil.

    Args:
        what: What is wrong, and where, in one clause.
        got: The value that was found.
        allowed: The values that are accepted.
        mend: How to correct it.
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
        """Makes one error that lists all problems of a recipe."""
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
    """There is no context, or there are too few rows for the demonstrations."""


class OverlapError(InstilError, ValueError):
    """An evaluation row is also a demonstration or a training input."""


class AlignmentError(InstilError, ValueError):
    """A prompt does not fit the model, or the teacher's and the student's prompt do not match."""


class ChatTemplateError(InstilError, ValueError):
    """The tokenizer has no chat template, or its template cannot render the turns."""


class VerbalizerError(InstilError, ValueError):
    """Two labels have the same tokens, or the tokens of one label begin with those of another."""


class TuningError(InstilError, ValueError):
    """The model or the kind of run does not allow this tuning."""


class TokenizerMismatchError(InstilError, ValueError):
    """Teacher and student split text into different tokens."""


class UnknownModelError(InstilError, LookupError):
    """There is no such model."""


class HubUnreachableError(InstilError, ConnectionError):
    """The model is a hub id and the hub cannot be reached."""

    __str__ = InstilError.__str__


class ServerError(InstilError, ConnectionError):
    """A server that was named does not answer, or answers with an error."""

    __str__ = InstilError.__str__


class EngineError(InstilError, RuntimeError):
    """An engine does not start, or does not compute what the model computes."""


class OutputExistsError(InstilError, FileExistsError):
    """The output folder already exists."""

    __str__ = InstilError.__str__


class OutputError(InstilError, OSError):
    """The output folder cannot be written."""

    __str__ = InstilError.__str__


class TargetStoreError(InstilError, OSError):
    """A target store is missing, unfinished or damaged, or was made from something else."""

    __str__ = InstilError.__str__


class UnfinishedRunError(InstilError, FileExistsError):
    """The folder holds an unfinished run with other settings."""

    __str__ = InstilError.__str__


class DiskFullError(InstilError, OSError):
    """There is not enough disk space for the run."""

    __str__ = InstilError.__str__


class NotFiniteLossError(InstilError, FloatingPointError):
    """The loss became NaN or infinite."""

    exit_status = 1


class LaunchError(InstilError, RuntimeError):
    """Several processes cannot reach each other, or the work needs a single process."""


class GateError(InstilError, RuntimeError):
    """The run is complete, but the student does not keep a limit of the gate."""

    exit_status = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint for an error message: the most similar known name, or all known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(repr, known))}"
