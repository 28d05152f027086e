"""A note of the part that this process works on: it stays behind where the process dies, and tells the next run."""

from cache_schema import atomic
from cache_schema.errors import LockedError, PipelineError
from cache_schema.json_file import parse_json
from cache_schema.layout import Layout
from stages.parts.pending import PartTask


class UnderWay:
    """The note in the cache of `layout`, for the holder of its lock.

    It is not synced, for a process that dies takes nothing with it that was written. After a power cut it may be
    missing or torn, which is as good as none.
    """

    def __init__(self, layout: Layout, fence: atomic.Fence) -> None:
        self._path = layout.under_way_json
        self._fence = fence

    def begin(self, task: PartTask) -> None:
        """Notes that the part of `task` is under way, instead of the one before it.

        Raises:
            LockedError: the lock was lost.
            EnvironmentProblem: the system refused to write.
        """
        self._fence.check()
        atomic.write_unsynced(self._path, {"modality": task.modality, "part": task.part.number})

    def left(self) -> tuple[str, int] | None:
        """Returns modality and number of the part at which an earlier run ended without being able to say so."""
        try:
            note = parse_json(self._path.read_bytes(), self._path)
            return note["modality"], note["part"]
        except (OSError, PipelineError, TypeError, KeyError):
            return None

    def end(self) -> None:
        """Removes the note, unless another process holds the lock by now."""
        if not self._path.exists():
            return
        try:
            self._fence.check()
        except LockedError:
            return
        atomic.remove_file(self._path)
