"""Files mapped into memory. A map keeps no descriptor, so that a cache of any number of parts can be open at once."""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cache_schema.errors import DamagedError
from cache_schema.reading import cannot_read, failures_told_from_absence

if TYPE_CHECKING:
    # Imported where it is used: whoever asks for --help loads `shards`, and must not load this.
    import pyarrow as pa


def mapped_file(path: Path) -> "pa.Buffer | None":
    """Returns the bytes of the file at `path` as a map that lasts as long as the buffer, None where there is no file.

    Raises:
        EnvironmentProblem: it cannot be opened or mapped now (too many open files or maps, a failing disk).
    """
    with failures_told_from_absence(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        return _mapped(path)
    return None


def _mapped(path: Path) -> "pa.Buffer":
    import pyarrow as pa

    # The maps of Python and NumPy keep a copy of the descriptor for as long as they last (before Python 3.13 always).
    try:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except OSError as error:
        if error.errno is not None:
            raise
        # pyarrow tells the number of an open that failed, but not of a map.
        raise cannot_read(path, OSError(errno.ENOMEM, str(error))) from error


@contextmanager
def parsed_by_arrow(path: Path, damage: str) -> Iterator[None]:
    """Turns what pyarrow raises inside, about bytes that were read from `path`, into `DamagedError` with those words.

    Raises:
        EnvironmentProblem: it is memory that lacks.
    """
    import pyarrow as pa

    try:
        yield
    except pa.ArrowMemoryError as error:
        raise cannot_read(path, OSError(errno.ENOMEM, str(error))) from error
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(damage) from error
