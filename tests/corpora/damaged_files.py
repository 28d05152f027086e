"""Files damaged in every way that a disk or a person damages them."""

from collections.abc import Callable
from pathlib import Path


def flip_bit(path: Path, at: int | None = None) -> None:
    """Flips one bit of the byte at `at`, by default one third into the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3 if at is None else at] ^= 4
    path.write_bytes(data)


def cut(path: Path, num_bytes: int = 1) -> None:
    """Takes the last bytes off."""
    path.write_bytes(path.read_bytes()[:-num_bytes])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit flipped": flip_bit,
    "one byte short": cut,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "bytes appended": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "deleted": Path.unlink,
}
"""What happens to a file -> the function that does it."""
