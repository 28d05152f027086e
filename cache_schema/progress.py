"""The callback by which long work reports how far it is."""

from typing import Protocol


class Progress(Protocol):
    """A callback: shows how far something is."""

    def __call__(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Says that `done` of `total` are done, counted in `unit`; `note` names what is slow, or the current loss."""
        ...


def silent(done: int, total: int, unit: str, note: str = "") -> None:
    """Shows nothing: what stands for a `Progress` that nobody gave."""
