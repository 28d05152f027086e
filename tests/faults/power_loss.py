"""Program: what a power cut may leave of an extract, at any instant, opened, verified and resumed.

    python -m tests.faults.power_loss FOLDER --states 300 [--resume-every 5]
    python -m tests.faults.power_loss FOLDER --without-each-sync [--one-of-a-kind]

A first and a growing extract run once with every file operation recorded. A state after a power cut is built from the
operations up to some instant: what was written and not synced may be there, missing, cut, or zeros; a folder's new,
renamed and removed names may each be lost as long as the folder was not synced. That is harsher than any journal.

With --without-each-sync, the syncs of one file or folder of the trace are left out in turn, and some state must then
fail: it proves that the model would notice, and that no sync is idle. With --one-of-a-kind, only the first of all whose
names differ in nothing but numbers.

Prints one JSON object.
"""

import argparse
import builtins
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import zarr  # noqa: F401 - imported before forking, so that not every run has to

from cache_schema import atomic
from cache_schema.errors import PipelineError
from cache_schema.verify import verify_cache
from stages.extract.config import ExtractConfig
from stages.teachers.probes import probe_images
from tests.faults.killed_extracts import config, extract, in_child, state_of

Operation = list[Any]
"""["mkdir", path], ["create", path, inode], ["write", inode, base64], ["sync", inode], ["rename", from, to],
["unlink", path] or ["sync folder", path]; paths are relative to the cache's parent."""


class RecordingSystem:
    """Stands for `os` where files are published, and notes what is done to them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self._paths: dict[int, Path] = {}
        self._inodes: dict[str, int] = {}

    def install(self) -> None:
        for module in (atomic, pathlib):
            module.os = self  # type: ignore[attr-defined]
        atomic.open = self.open_file  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open_file(self, path: Path, mode: str = "r", **options: object) -> object:
        file = builtins.open(path, mode, **options)  # type: ignore[call-overload]  # noqa: SIM115
        inode = self._inodes[self._name(path)] = len(self.operations)
        self.operations.append(["create", self._name(path), inode])
        return _RecordingFile(file, self, inode)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = Path(path)
        return descriptor

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        path = self._paths[descriptor]
        name = self._name(path)
        self.operations.append(["sync folder", name] if path.is_dir() else ["sync", self._inodes[name]])

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)
        self._inodes[self._name(target)] = self._inodes.pop(self._name(source))
        self.operations.append(["rename", self._name(source), self._name(target)])

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        self.operations.append(["mkdir", self._name(path)])

    def unlink(self, path: Path) -> None:
        os.unlink(path)
        self.operations.append(["unlink", self._name(path)])

    def _name(self, path: Path) -> str:
        return str(Path(path).relative_to(self.root))


class _RecordingFile:
    def __init__(self, file, system: RecordingSystem, inode: int) -> None:
        self._file, self._system, self._inode = file, system, inode

    def write(self, data) -> int:
        written = self._file.write(data)
        self._system.operations.append(["write", self._inode, b64encode(bytes(data[:written])).decode()])
        return written

    def __enter__(self) -> "_RecordingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass
class Disk:
    """What is surely on the disk after some operations, and what perhaps."""

    names: dict[str, int | None] = field(default_factory=dict)  # a folder's inode is None
    written: dict[int, bytes] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    pending: list[Operation] = field(default_factory=list)
    inode_of: dict[str, int] = field(default_factory=dict)

    def do(self, operation: Operation) -> None:
        kind, *rest = operation
        if kind == "write":
            self.written[rest[0]] += b64decode(rest[1])
        elif kind == "sync":
            self.synced[rest[0]] = self.written[rest[0]]
        elif kind == "sync folder":
            kept = [op for op in self.pending if str(PurePosixPath(op[1]).parent) == rest[0]]
            self.pending = [op for op in self.pending if op not in kept]
            for op in kept:
                self._name(self.names, op)
        else:
            if kind == "create":
                self.written[rest[1]] = self.synced[rest[1]] = b""
                self.inode_of[rest[0]] = rest[1]
            elif kind == "rename":
                inode = self.inode_of[rest[1]] = self.inode_of.pop(rest[0])
                operation = [*operation, inode]
            self.pending.append(operation)

    def state(self, lost: list[Operation], contents: dict[int, bytes]) -> dict[str, bytes | None]:
        """Returns path -> bytes (None for a folder) when `lost` of the pending names do not survive."""
        names = dict(self.names)
        for op in self.pending:
            if op not in lost:
                self._name(names, op)
        there = {name for name, inode in names.items() if inode is None} | {"."}
        return {
            name: None if inode is None else contents.get(inode, self.written[inode])
            for name, inode in names.items()
            if all(str(parent) in there for parent in PurePosixPath(name).parents)
        }

    @staticmethod
    def _name(names: dict[str, int | None], operation: Operation) -> None:
        kind, path, *rest = operation
        if kind == "mkdir":
            names[path] = None
        elif kind == "create":
            names[path] = rest[0]
        elif kind == "rename":
            names.pop(path, None)
            names[rest[0]] = rest[1]
        else:
            names.pop(path, None)


def settings_of(folder: Path, *, grown: bool) -> ExtractConfig:
    more = (str(folder / "more.txt"),) if grown else ()
    first = config(folder, folder / "recorded" / "cache")
    return replace(first, texts=(*first.texts, *more))


def record(folder: Path) -> None:
    """Runs the two extracts with their operations recorded, into FOLDER/trace.json."""
    root = folder / "recorded"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    system = RecordingSystem(root)
    system.install()
    extract(settings_of(folder, grown=False))
    extract(settings_of(folder, grown=True))
    (folder / "trace.json").write_text(json.dumps(system.operations))


class Judge:
    """Opens, verifies and resumes states, each different one once."""

    def __init__(self, folder: Path, trace: list[Operation]) -> None:
        self.folder = folder
        self.place = folder / "state"
        self.expected = state_of(folder / "recorded" / "cache")
        self.seen: set[str] = set()
        self.committed_at = list(_committed_at(trace))

    def faults(self, state: dict[str, bytes | None], at: int, *, resume: bool) -> list[str]:
        """Returns what is wrong with the state after `at` operations."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        for name, content in sorted(state.items()):
            if content is None:
                (self.place / name).mkdir()
            else:
                (self.place / name).write_bytes(content)
        faults = [f"committed and missing: {n}" for when, n in self.committed_at if when <= at and not state.get(n)]
        cache = self.place / "cache"
        if (cache / "cache.json").exists():
            try:
                faults += [f"{problem.where}: {problem.what}" for problem in verify_cache(cache)]
            except PipelineError as error:
                faults.append(str(error))
        if resume and not faults:
            settings = replace(settings_of(self.folder, grown=True), cache=cache)
            if in_child(lambda: extract(settings) or 0) != 0:
                faults.append("it cannot be resumed")
            elif state_of(cache) != self.expected or verify_cache(cache):
                faults.append("resumed, it is another cache")
        return faults

    def is_new(self, state: dict[str, bytes | None]) -> bool:
        digest = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
        was = len(self.seen)
        self.seen.add(digest)
        return len(self.seen) > was


def _committed_at(trace: list[Operation]) -> Iterator[tuple[int, str]]:
    """Yields (operations done, path) for every record whose commit returned by then."""
    for number, (kind, *rest) in enumerate(trace):
        if kind == "rename" and PurePosixPath(rest[1]).parent.name == "records" and rest[1].endswith(".json"):
            folder = str(PurePosixPath(rest[1]).parent)
            yield trace.index(["sync folder", folder], number) + 1, rest[1]


def random_state(disk: Disk, rng: random.Random) -> dict[str, bytes | None]:
    share = rng.choice((0.0, 0.3, 0.7, 1.0))
    lost = [op for op in disk.pending if rng.random() < share]
    contents = {}
    for inode, data in disk.written.items():
        if data != disk.synced[inode]:
            at = rng.randint(0, len(data))
            contents[inode] = rng.choice((data, b"", data[:at], data[:at] + bytes(len(data) - at), disk.synced[inode]))
    return disk.state(lost, contents)


def random_states(trace: list[Operation], rng: random.Random) -> Iterator[tuple[int, dict[str, bytes | None]]]:
    """Yields (operations done, state), every instant in turn, again and again with other losses."""
    for _ in range(100):
        disk = Disk()
        for at, operation in enumerate(trace, start=1):
            disk.do(operation)
            for _ in range(4):
                yield at, random_state(disk, rng)


def states_without(trace: list[Operation], sync: Operation) -> Iterator[tuple[int, dict[str, bytes | None]]]:
    """Yields (instant, state) in which just what `sync`, a file's or a folder's, would have saved is lost."""
    disk = Disk()
    contents = {sync[1]: b""} if sync[0] == "sync" else {}
    for number, operation in enumerate(trace, start=1):
        if operation != sync:
            disk.do(operation)
        if operation[0] == "rename" or operation == sync or number == len(trace):
            folder = sync[1] if sync[0] == "sync folder" else None
            lost = [op for op in disk.pending if str(PurePosixPath(op[1]).parent) == folder]
            yield number, disk.state(lost, contents)


def try_random(judge: Judge, trace: list[Operation], args: argparse.Namespace) -> dict[str, Any]:
    wrong: list[str] = []
    different = resumed = 0
    for at, state in random_states(trace, random.Random(args.seed)):
        if different == args.states:
            break
        if judge.is_new(state):
            different += 1
            resume = different % args.resume_every == 0
            resumed += resume
            wrong += [f"after operation {at}: {fault}" for fault in judge.faults(state, at, resume=resume)]
    return {"states": different, "resumed": resumed, "wrong": wrong[:20]}


def try_without(judge: Judge, trace: list[Operation], *, one_of_a_kind: bool) -> dict[str, Any]:
    names = {op[1]: op[2] for op in reversed(trace) if op[0] == "rename"}
    inodes = {op[2]: names[op[1]] for op in trace if op[0] == "create"}
    syncs = {tuple(op) for op in trace if op[0].startswith("sync")}
    # A lock that is torn belongs to a process that has ended.
    syncs = {sync for sync in syncs if not inodes.get(sync[1], "").endswith("lock.json")}
    if one_of_a_kind:
        kinds = {sync: (sync[0], re.sub(r"\d+", "N", inodes.get(sync[1], sync[1]))) for sync in syncs}
        syncs = set({kinds[sync]: sync for sync in sorted(syncs, key=str, reverse=True)}.values())
    idle = [
        f"{kind} of {inodes.get(target, target)}"
        for kind, target in sorted(syncs, key=str)
        if not any(judge.faults(state, at, resume=False) for at, state in states_without(trace, [kind, target]))
    ]
    return {"syncs": len(syncs), "idle": idle}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--states", type=int, default=300)
    parser.add_argument("--resume-every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-each-sync", action="store_true")
    parser.add_argument("--one-of-a-kind", action="store_true")
    args = parser.parse_args()
    probe_images()
    assert in_child(lambda: record(args.folder) or 0) == 0
    trace = json.loads((args.folder / "trace.json").read_text())
    judge = Judge(args.folder, trace)
    if args.without_each_sync:
        result = try_without(judge, trace, one_of_a_kind=args.one_of_a_kind)
    else:
        result = try_random(judge, trace, args)
    print(json.dumps({"operations": len(trace), **result}))


if __name__ == "__main__":
    main()
