"""The content of a text file from some byte on, whether the file is plain or compressed as its name says.

Offsets are those of the content. What is compressed can only be read from its beginning, so a stream that stopped where
the next reader goes on is kept open: parts that are read in their order cost one pass over the file, not one each.
"""

import contextlib
import gzip
import io
import threading
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from cache_schema.errors import DamagedError, MismatchError, PipelineError
from stages.files.lines import refuse_nothing
from stages.files.opened import planned_file, state_of

COMPRESSIONS = {".gz": (b"\x1f\x8b", "gzip"), ".zst": (b"\x28\xb5\x2f\xfd", "zstd")}
"""Last extension -> first bytes of such a file, name of the compression."""

_SKIPPABLE = b"\x2a\x4d\x18"
_BUFFER_BYTES = 1 << 20
_MAX_KEPT = 4

_Place = tuple[str, tuple[tuple[str, int], ...]]
_kept: dict[_Place, tuple[contextlib.ExitStack, BinaryIO]] = {}
_lock = threading.Lock()


def with_compressions(*extensions: str) -> tuple[str, ...]:
    """Returns `extensions`, and each of them with the extension of every compression behind it."""
    return tuple(first + second for first in extensions for second in ("", *COMPRESSIONS))


def compression_of(uri: str) -> str:
    """Returns the last extension of `uri` if it is one of `COMPRESSIONS`, else nothing."""
    return next((extension for extension in COMPRESSIONS if uri.lower().endswith(extension)), "")


@contextlib.contextmanager
def content_of(uri: str, offset_bytes: int = 0) -> Iterator[BinaryIO]:
    """Yields a buffered stream of the content of a planned file, from `offset_bytes` on. It need not be able to seek.

    Memory is bounded by the window of the compression, whatever a file grows to.

    Raises:
        DamagedError: the file is not what its name says, is cut, goes on after its end, or fails its checksum.
        MismatchError: the content ends before `offset_bytes`, or the file is gone.
        UsageError, EnvironmentProblem: as `planned_file`.
    """
    if not compression_of(uri):
        with planned_file(uri) as planned, planned.stream(offset_bytes) as stream:
            if offset_bytes == 0:
                refuse_nothing(uri, planned.size_bytes)
                _refuse_compressed(uri, planned.read_at(0, 4))
            yield stream
        return
    place = (uri, tuple(sorted(state_of(uri).items())))
    stack, kept = _take(place, offset_bytes)
    with stack:
        content = kept or _decompressed(uri, stack)
        _skip_to(uri, content, offset_bytes)
        yield content
        # Nothing follows the end of a file: one that was read through need not be kept.
        if cast(Any, content).peek(1):
            _keep(place, stack.pop_all(), content)


class _Decompressed(io.RawIOBase):
    """The output of a decompressor as a stream: it counts its position and names damage."""

    def __init__(self, uri: str, compression: str, inner: Any) -> None:
        self._uri = uri
        self._compression = compression
        self._inner = inner
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except PipelineError:
            raise
        except (EOFError, zlib.error, OSError) as error:
            # Both libraries report damage as an error of the operating system that has no number.
            if getattr(error, "errno", None) is not None:
                raise
            raise DamagedError(
                f"{self._uri} cannot be decompressed as {self._compression} after {self._position:,} bytes of content "
                f"({error}): it is cut, damaged or goes on after its end; fetch it again"
            ) from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _decompressed(uri: str, stack: contextlib.ExitStack) -> BinaryIO:
    magic, name = COMPRESSIONS[compression_of(uri)]
    planned = stack.enter_context(planned_file(uri))
    head = planned.read_at(0, 4)
    if not head.startswith(magic) and not (name == "zstd" and head[1:] == _SKIPPABLE):
        if not head:
            raise DamagedError(f"{uri} is empty (0 bytes), not compressed with {name}: fetch it again, or leave it out")
        raise DamagedError(f"{uri} is not compressed with {name}, as its name says: rename it, or fetch it again")
    stream = stack.enter_context(planned.stream())
    inner: Any
    if name == "gzip":
        inner = gzip.GzipFile(fileobj=stream)
    else:
        import pyarrow as pa

        inner = pa.CompressedInputStream(stream, name)
    return cast(BinaryIO, io.BufferedReader(_Decompressed(uri, name, inner), _BUFFER_BYTES))


def _refuse_compressed(uri: str, head: bytes) -> None:
    for extension, (magic, name) in COMPRESSIONS.items():
        if head.startswith(magic):
            raise DamagedError(f"{uri} is compressed with {name}: give it a name that ends in {extension}")


def _skip_to(uri: str, content: BinaryIO, offset_bytes: int) -> None:
    while (missing := offset_bytes - content.tell()) > 0:
        if not content.read(min(missing, _BUFFER_BYTES)):
            raise MismatchError(
                f"{uri} ends after {content.tell():,} bytes of content, before the {offset_bytes:,} that the plan "
                "starts at: it changed; restore it"
            )


def _take(place: _Place, offset_bytes: int) -> tuple[contextlib.ExitStack, BinaryIO | None]:
    """Returns the kept stream of a file, if it can still reach `offset_bytes`, and what closes it."""
    with _lock:
        stack, content = _kept.pop(place, (contextlib.ExitStack(), None))
    if content is not None and content.tell() > offset_bytes:
        stack.close()
        return contextlib.ExitStack(), None
    return stack, content


def _keep(place: _Place, stack: contextlib.ExitStack, content: BinaryIO) -> None:
    with _lock:
        replaced = [_kept.pop(place)] if place in _kept else []
        _kept[place] = (stack, content)
        while len(_kept) > _MAX_KEPT:
            replaced.append(_kept.pop(next(iter(_kept))))
    for old, _ in replaced:
        old.close()
