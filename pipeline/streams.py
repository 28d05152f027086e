"""The three streams of the program: there when a shell closed them, and no reason to fail when their reader leaves."""

import errno
import io
import os
import sys
from typing import TextIO

_STDOUT = 1
_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)


def keep_streams() -> None:
    """Puts streams in the place of those that are closed, and makes stdout and stderr outlive their readers.

    Without it the next file that is opened, a shard for example, would get the number of the closed one, and every
    library and child process that prints would print into it.
    """
    for number, mode in enumerate(_MODES):
        if _is_closed(number):
            # The lowest free number, which is this one: those below it are taken by now.
            os.open(os.devnull, mode)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = _outliving(1, sys.stdout), _outliving(2, sys.stderr)


def reader_left() -> bool:
    """Returns whether somebody who read our results went away before the last of them, as `head` does."""
    return isinstance(sys.stdout, _Outliving) and sys.stdout.reader_left


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError as error:
        return error.errno == errno.EBADF
    return False


class _Outliving(io.TextIOWrapper):
    """A stream of text; what is written after its reader left goes nowhere, as does a remark that cannot be written.

    Attributes:
        reader_left: that happened.

    Raises, when it is written to:
        OSError: results cannot be written, once: the disk is full, for example.
    """

    reader_left = False

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._go_nowhere(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._go_nowhere(error)

    def _go_nowhere(self, error: OSError) -> None:
        # Else what is buffered still would fail again, and once more when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        self.reader_left = isinstance(error, BrokenPipeError)
        if not self.reader_left and self.fileno() == _STDOUT:
            raise error


def _outliving(number: int, stream: TextIO | None) -> _Outliving:
    # A file name that the locale cannot write is no reason to fail either.
    return _Outliving(
        os.fdopen(number, "wb", closefd=False),
        encoding=stream.encoding if stream is not None else None,
        errors="backslashreplace",
        line_buffering=number == 2 or os.isatty(number),
    )
