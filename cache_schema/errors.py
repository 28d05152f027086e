"""The error tree, grouped by what the caller can do about it.

Every error that is meant for a person derives from `PipelineError` and carries the exit code of the command line.
A message has three parts: what is wrong with the value seen, where, what to do.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class PipelineError(Exception):
    """Root of every error with a message written for a person; ends the command with `exit_code`."""

    exit_code: ClassVar[int] = 1


class UsageError(PipelineError, ValueError):
    """The request is impossible or misspelt; nothing was written. Change the command or the configuration."""

    exit_code = 2


class EnvironmentProblem(PipelineError):
    """The machine lacks something (disk, device, permission, package). Free or fix it, then run again."""

    exit_code = 1


class DivergedError(PipelineError):
    """Training met a loss or gradient that is not finite. The last good checkpoint stays."""

    exit_code = 1


class PartsFailed(PipelineError):
    """The run ended with failed parts; everything else is committed. Run again to resume."""

    exit_code = 3


class RefusedError(PipelineError, ValueError):
    """A cache, source or checkpoint is not what it must be; using it would give wrong results."""

    exit_code = 4


class DamagedError(RefusedError):
    """Bytes on disk are not those that were committed."""


class MismatchError(RefusedError):
    """Two things that must be the same are not; the message shows both."""


class DriftedError(MismatchError):
    """A teacher no longer gives the features that it gave before: whatever it makes next would be wrong too."""


class LockedError(RefusedError):
    """Another process is writing here, or took over the lock of this one."""


class UnfinishedError(RefusedError):
    """Something is asked of a cache or run whose parts are not all committed."""


class TooManyBadRows(RefusedError):
    """More rows are bad than the caller allows."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the known name closest to `name`, or `""` when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a `name` that is none of the `known` ones of its `kind`; lists them and the nearest."""
    names = sorted(known)
    return UsageError(f"unknown {kind} {name!r}{nearest(name, names)}; known: {', '.join(names) or 'none'}")
