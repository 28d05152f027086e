"""Watches sources while parts are read from them: a part whose source moved, changed or vanished is not committed."""

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cache_schema.errors import EnvironmentProblem, MismatchError
from cache_schema.plan import SourceEntry
from stages.files.opened import is_remote, state_of
from stages.sources.base import Modality, RawSample, Source
from stages.sources.folder import FolderSource

_MOST_FOLDERS = 1024
_CHANGED = "restore it and run again, or take it as it is now with --accept-new"

Identity = tuple[int, int]
"""Device and inode of a folder: another pair at the same place is another folder, or a mount point left behind."""


@dataclass(frozen=True)
class SeenRoots:
    """The folders that sources lie in, as they were at the start of a run on the machine `host`."""

    host: str
    identities: Mapping[str, Identity]


def seen_roots(entries: Iterable[SourceEntry]) -> SeenRoots:
    """Returns the folders that `entries` lie in, as they are now; raises `EnvironmentProblem` when one is not there."""
    roots = {root: entry for entry in entries for root in roots_of(entry)}
    return SeenRoots(platform.node(), {root: _identity_of(root, entry.uri) for root, entry in roots.items()})


def roots_of(entry: SourceEntry) -> list[str]:
    """Returns the local folders that a source lies in: itself, or that of its file, and the root of its paths."""
    home = entry.uri if entry.kind == FolderSource.kind else os.path.dirname(entry.uri)
    return [root for root in dict.fromkeys((home, entry.options.get("root", home))) if not is_remote(root)]


def state_of_source(uri: str) -> dict[str, int]:
    """Returns `state_of` a source, and of a local file the time that nobody can set back who replaces its content."""
    state = state_of(uri)
    return {**state, "ctime_ns": os.stat(uri).st_ctime_ns} if state and not is_remote(uri) else state


def file_state(state: Mapping[str, int]) -> dict[str, int]:
    """Returns what of a source's state is true of its own file, and not of the files that it names."""
    return {name: value for name, value in state.items() if name not in ("newest_ns", "names", "listing")}


def is_same_state(then: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Returns whether a file is as it was. What one of two states does not say, a plan of before or a server, counts
    for nothing, unless they have nothing in common."""
    then = file_state(then)
    both = then.keys() & now.keys()
    return bool(both or not then) and all(then[name] == now[name] for name in both)


class SourceWatch:
    """Compares sources with what was planned, and their folders with those that the run began with.

    Args:
        sources: the plan's sources of each modality.
        begun: the folders at the start of the run. On another machine they have other numbers: it remembers its own.
    """

    def __init__(self, sources: Mapping[Modality, Sequence[SourceEntry]], begun: SeenRoots | None = None) -> None:
        self._sources = sources
        here = begun is not None and begun.host == platform.node()
        self._roots: dict[str, Identity] = dict(begun.identities) if begun is not None and here else {}
        self._folders: dict[str, Identity] = {}
        self._listed: set[int] = set()

    def require_planned(self, modality: Modality, number: int, source: Source) -> None:
        """Checks that a source is there and as it was planned, before a part is read from it or after.

        Raises:
            EnvironmentProblem: its folder is gone, or another one than at the start of the run.
            MismatchError: it changed since it was planned.
        """
        entry = self._sources[modality][number]
        self.require_roots(modality, number)
        if isinstance(source, FolderSource):
            if number not in self._listed:
                source.require_planned(entry.fingerprint, entry.state)
                self._listed.add(number)
        elif not is_same_state(entry.state, now := state_of_source(entry.uri)):
            raise MismatchError(
                f"{entry.uri} changed since it was planned ({_shown(file_state(entry.state))} then, {_shown(now)} "
                f"now): {_CHANGED}"
            )

    def require_roots(self, modality: Modality, number: int) -> None:
        """Raises `EnvironmentProblem` when a folder that the source lies in is not the one the run began with."""
        entry = self._sources[modality][number]
        for root in roots_of(entry):
            now = _identity_of(root, entry.uri)
            if self._roots.setdefault(root, now) != now:
                raise _another(root, entry.uri)

    def judged(self, modality: Modality, number: int, raw: RawSample) -> RawSample:
        """Returns `raw`, or, where its file changed after it was planned, a bad row that says so."""
        if raw.file is None:
            return raw
        newest_ns = self._sources[modality][number].state.get("newest_ns")
        if raw.payload is not None:
            self._remember(os.path.dirname(raw.file.path))
        # A time that is still to come says nothing.
        if newest_ns is not None and newest_ns < raw.file.mtime_ns <= time.time_ns():
            return replace(raw, payload=None, status="src-changed", reason="after it was planned")
        return raw

    def require_folders(self, uri: str) -> None:
        """Looks again at the folders that pictures were read from, because others are missing.

        Raises:
            EnvironmentProblem: one is gone or another one by now: its files are not missing, it is.
        """
        for folder, identity in self._folders.items():
            if _identity_of(folder, uri) != identity:
                raise _another(folder, uri)

    def _remember(self, folder: str) -> None:
        if folder in self._folders or len(self._folders) >= _MOST_FOLDERS:
            return
        self._folders[folder] = _identity_of(folder, folder)


def _identity_of(folder: str, uri: str) -> Identity:
    try:
        # With the dot, so that a folder that may not be entered is as good as gone.
        status = os.stat(os.path.join(folder, "."))
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder} is not there any more or cannot be entered ({error.strerror}), so {uri} cannot be read: mount "
            "or restore it, then run again"
        ) from error
    return status.st_dev, status.st_ino


def _another(folder: str, uri: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{folder} is another folder than when this run began (a mount that was lost?), so {uri} is not read from it: "
        "mount or restore it, then run again"
    )


def _shown(state: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(state.items())) or "gone"
