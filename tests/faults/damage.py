"""Program: every kind of file of a cache damaged in every way; each fault must be found, named and refused.

    python -m tests.faults.damage FOLDER --faults 700 [--repairs 30] [--clean-opens 100]

Prints one JSON object: faults planted, found by `verify`, named by it, refused by readers that use the file, crashes.
"""

import argparse
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import PipelineError
from cache_schema.leftovers import leftovers_of
from cache_schema.neighbours import NeighboursReader
from cache_schema.repair import withdraw
from cache_schema.selections import read_selection
from cache_schema.verify import verify_cache
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.search.index import load_index
from tests.corpora.extracts import digests_of, run_parts
from tests.corpora.processes import result_of
from tests.corpora.resealed import exchange, rewrite_features, shift_neighbours
from tests.corpora.small_corpus import write_least_sources
from tests.corpora.stub_teacher import STUB_ARRAY
from tests.faults.killed_extracts import config

PAGE = 4096
KINDS = {
    "cache": r"cache\.json",
    "plan": r"\w+/plan\.json",
    "table": r"\w+/samples/\d+\.parquet",
    "shard": r"\w+/features\.zarr/[^/]+/c/\d+/0",
    "array metadata": r"\w+/features\.zarr/[^/]+/zarr\.json",
    "group metadata": r"\w+/features\.zarr/zarr\.json",
    "recipe": r"\w+/arrays/[^/]+/recipe\.json",
    "probes": r"\w+/arrays/[^/]+/probes\.npz",
    "record": r"\w+/arrays/[^/]+/records/\d+\.json",
    "row hashes": r"\w+/arrays/[^/]+/records/\d+\.rows",
    "index": r"\w+/indexes/.*\.faiss",
    "index sidecar": r"\w+/indexes/.*\.json",
    "selection": r"selections/.*\.parquet",
    "selection sidecar": r"selections/.*\.json",
    "neighbours recipe": r"neighbours/[^/]+/recipe\.json",
    "neighbours record": r"neighbours/[^/]+/records/.*\.json",
    "neighbours shard": r"neighbours/[^/]+/neighbours\.zarr/\w+/c/\d+/0",
    "neighbours metadata": r"neighbours/[^/]+/neighbours\.zarr/.*zarr\.json",
}
OF_ONE_PART = ("table", "shard", "record", "row hashes")
# Written again from plan and recipe, or extracted again: what repair brings back.
REPAIRABLE = (*OF_ONE_PART, "array metadata", "group metadata")
# Other programs read these; ours do not.
NOT_READ = ("array metadata", "group metadata", "probes", "neighbours metadata")


def settings_of(folder: Path, *, grown: bool = True) -> ExtractConfig:
    first = config(folder, folder / "good")
    return replace(first, texts=(*first.texts, str(folder / "more.txt"))) if grown else first


def run_extract(settings: ExtractConfig) -> set[tuple[str, int]]:
    """Runs an extract to its end, and returns (modality, part) of what was pending."""
    with open_job(settings) as job:
        tasks = run_parts(job)
        job.finish()
    return {(task.modality, task.part.number) for task in tasks}


def make_caches(folder: Path) -> tuple[Path, Path]:
    """Returns a finished cache with all that a cache can have, and the same one some time before."""
    write_least_sources(folder)
    run_extract(replace(settings_of(folder, grown=False), index=True))
    result_of("dedup", "--cache", str(folder / "good"), "--modality", "text", "--exact", "--name", "unique")
    shutil.copytree(folder / "good", folder / "older")
    run_extract(replace(settings_of(folder), index=True))
    good = ["--cache", str(folder / "good")]
    result_of("mine", *good, "--from", "image", "--to", "text", "--k", "3", "--name", "near")
    shutil.rmtree(folder / "good" / "selections")
    result_of("dedup", *good, "--modality", "text", "--exact", "--name", "unique")
    return folder / "good", folder / "older"


def kind_of(path: Path) -> str | None:
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, str(path))), None)


class Damage:
    """Damages files of the cache at `place`, which is a copy of `good`, and puts them right again."""

    def __init__(self, good: Path, older: Path, place: Path, rng: random.Random) -> None:
        self.good, self.older, self.place, self.rng = good, older, place, rng
        shutil.copytree(good, place)
        self.files: dict[str, list[Path]] = {}
        for path in sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file()):
            kind = kind_of(path)
            assert kind or path.name.startswith("."), f"{path} is of no kind that is tested"
            if kind:
                self.files.setdefault(kind, []).append(path)
        self.faults: dict[str, Callable[[Path, Path], bytes | None]] = {
            "one bit flipped": self._flip,
            "one byte short": lambda path, other: self._of(path)[:-1],
            "a page short": lambda path, other: self._of(path)[:-PAGE],
            "half": lambda path, other: self._of(path)[: len(self._of(path)) // 2],
            "emptied": lambda path, other: b"",
            "deleted": lambda path, other: None,
            "a page of zeros": self._zero_page,
            "bytes appended": lambda path, other: self._of(path) + self.rng.randbytes(self.rng.randint(1, 5000)),
            "another's": lambda path, other: self._of(other),
            "swapped": lambda path, other: self._of(other),
            "of an older version": self._older,
        }
        # Under these every checksum is right: records are sealed anew over what was done to the files.
        self.resealed: dict[str, dict[str, Callable[[Path], list[Path]]]] = {
            "record": {
                "sealed over exchanged shards": lambda path: self._exchange(path, "shard"),
                "sealed over exchanged tables": lambda path: self._exchange(path, "samples"),
                "sealed over exchanged row hashes": lambda path: self._exchange(path, "rows"),
                "sealed over an edited row": self._edit_row,
            },
            "neighbours record": {"sealed over shifted neighbours": self._shift_neighbours},
        }

    def plant(self, kind: str, fault: str) -> list[Path]:
        """Damages one file of `kind` and returns it, or two when they are swapped, or none when it cannot be had."""
        path = self.rng.choice(self.files[kind])
        if fault in self.resealed.get(kind, {}):
            return self.resealed[kind][fault](path)
        others = [other for other in self.files[kind] if self._of(other) != self._of(path)]
        if fault in ("another's", "swapped") and not others:
            return []
        other = self.rng.choice(others) if others else path
        data = self.faults[fault](path, other)
        if data == self._of(path):
            return []
        self._write(path, data)
        if fault == "swapped":
            self._write(other, self._of(path))
            return [path, other]
        return [path]

    def faults_of(self, kind: str) -> list[str]:
        return [*self.faults, *self.resealed.get(kind, {})]

    def mend(self, paths: list[Path]) -> None:
        for path in paths:
            self._write(path, self._of(path))

    def _exchange(self, record: Path, kind: str) -> list[Path]:
        array, part = self._array_of(record), int(record.stem)
        others = sorted(array.committed - {part})
        return self._inside(exchange(array, kind, part, self.rng.choice(others)) if others else [])

    def _edit_row(self, record: Path) -> list[Path]:
        array, part = self._array_of(record), int(record.stem)
        bad = set(array.record(part).bad)
        row = self.rng.choice([row for row in range(array.plan.part(part).num_rows) if row not in bad])
        return self._inside(rewrite_features(array, part, lambda rows: rows.__setitem__(row, -rows[row])))

    def _array_of(self, record: Path) -> CachedArray:
        return Cache.open(self.place).array("image" if record.parts[0] == "image" else "text")

    def _shift_neighbours(self, record: Path) -> list[Path]:
        return self._inside(shift_neighbours(Cache.open(self.place), record.parts[1], int(record.stem)))

    def _inside(self, paths: list[Path]) -> list[Path]:
        return [path.relative_to(self.place) for path in paths]

    def _of(self, path: Path) -> bytes:
        return (self.good / path).read_bytes()

    def _write(self, path: Path, data: bytes | None) -> None:
        if data is None:
            (self.place / path).unlink()
        else:
            (self.place / path).write_bytes(data)

    def _flip(self, path: Path, other: Path) -> bytes:
        data = bytearray(self._of(path))
        data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        return bytes(data)

    def _zero_page(self, path: Path, other: Path) -> bytes:
        data = self._of(path)
        start = PAGE * self.rng.randrange(-(-len(data) // PAGE))
        return data[:start] + bytes(len(data[start : start + PAGE])) + data[start + PAGE :]

    def _older(self, path: Path, other: Path) -> bytes:
        older = self.older / path
        return older.read_bytes() if older.exists() else self._of(path)


def read_everything(path: Path) -> None:
    """Reads all that training and searching read; raises for anything that is not right."""
    cache = Cache.open(path)
    for modality in ("image", "text"):
        array = cache.array(modality)
        array.require_complete()
        array.digest()
        rows = array.ok_rows()
        assert np.isfinite(array.features.gather(rows)).all()
        for part in sorted(array.committed):
            array.outcome(part)
        load_index(array)
    reader = NeighboursReader(cache, "near")
    rows = cache.array("image").ok_rows()
    reader.ids(rows)
    reader.scores(rows)
    for name in cache.layout.selection_names() or ["unique"]:
        read_selection(cache, name)


def refusal_of(read: Callable[[Path], object], path: Path) -> str:
    """Returns the message with which `read` refuses the cache at `path`, "" when it does not."""
    try:
        read(path)
    except PipelineError as error:
        return str(error)
    return ""


def complaints(path: Path) -> str:
    try:
        problems = [f"{problem.where}: {problem.what}" for problem in verify_cache(path)]
        # A file whose sidecar is gone looks like one whose publication was interrupted.
        return "\n".join([*problems, *map(str, leftovers_of(Cache.open(path)))])
    except PipelineError as error:
        return str(error)


def is_named(paths: list[Path], kind: str, said: str) -> bool:
    """Whether `said` names every damaged file, or what it belongs to: its part, its sidecar, its folder of neighbours.

    Which one of two files that contradict each other is the wrong one, nobody can tell.
    """
    for path in paths:
        same = {path, *(_siblings(path) if kind in OF_ONE_PART else ())}
        if kind.startswith(("index", "selection")):
            same = {path.with_suffix(suffix) for suffix in (".faiss", ".parquet", ".json")}
        if kind.startswith("neighbours"):
            same = {Path(*path.parts[:2])}
        if kind == "plan" and f"{path.parent}/" in said and "plan" in said:
            continue
        if not any(str(each) in said for each in same):
            return False
    return True


def _siblings(path: Path) -> list[Path]:
    part = int(path.parent.name if path.name == "0" else path.stem)
    records = Path(path.parts[0]) / "arrays" / f"{STUB_ARRAY}.v0" / "records"
    return [records / f"{part:05d}.json", records / f"{part:05d}.rows"]


def try_faults(damage: Damage, num_faults: int) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    cases = [(kind, fault) for kind in damage.files for fault in damage.faults_of(kind)]
    while counts["planted"] < num_faults:
        for kind, fault in cases:
            if (kind, fault) == ("record", "deleted") or (kind, fault) == ("neighbours record", "deleted"):
                continue  # Then the part is pending, which is no damage.
            paths = damage.plant(kind, fault)
            if not paths:
                continue
            said = complaints(damage.place)
            refused = refusal_of(read_everything, damage.place)
            counts["planted"] += 1
            counts["found"] += bool(said)
            counts["named"] += is_named(paths, kind, said)
            what = f"{kind} {paths[0]} {fault}"
            if not said or not is_named(paths, kind, said):
                wrong.append(f"{what}: verify says {said[:200]!r}")
            if kind not in NOT_READ:
                counts["of files that are read"] += 1
                counts["refused"] += bool(refused)
                if not refused:
                    wrong.append(f"{what}: it was read")
            damage.mend(paths)
    return counts, wrong


def try_repairs(damage: Damage, settings: ExtractConfig, num_repairs: int) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    expected = digests_of(damage.good)
    cases = [(kind, fault) for kind in REPAIRABLE for fault in damage.faults_of(kind)]
    damage.rng.shuffle(cases)
    for kind, fault in cases[:num_repairs]:
        paths = damage.plant(kind, fault)
        if not paths:
            continue
        damaged = {(path.parts[0], int(_siblings(path)[0].stem)) for path in paths if kind in OF_ONE_PART}
        withdraw(Cache.open(damage.place), verify_cache(damage.place))
        redone = run_extract(replace(settings, cache=damage.place))
        digests = digests_of(damage.place)
        counts["repairs"] += 1
        counts["damaged parts"] += len(damaged)
        counts["parts extracted again"] += len(redone)
        counts["restored"] += digests == expected
        left = complaints(damage.place)
        if redone != damaged or digests != expected or left:
            wrong.append(f"{kind} {paths[0]} {fault}: {redone} again for {damaged}; {left[:200]}")
        shutil.rmtree(damage.place)
        shutil.copytree(damage.good, damage.place)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for flag, default in (("--faults", 700), ("--repairs", 30), ("--clean-opens", 100), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default)
    args = parser.parse_args()
    good, older = make_caches(args.folder)
    damage = Damage(good, older, args.folder / "damaged", random.Random(args.seed))
    false_alarms = sum(bool(refusal_of(read_everything, damage.place)) for _ in range(args.clean_opens))
    false_alarms += bool(complaints(damage.place))
    counts, wrong = try_faults(damage, args.faults)
    repairs, not_restored = try_repairs(damage, settings_of(args.folder), args.repairs)
    print(
        json.dumps(
            {
                "kinds": len(damage.files),
                "clean_opens": args.clean_opens,
                "false_alarms": false_alarms,
                **counts,
                **repairs,
                "wrong": (wrong + not_restored)[:40],
            }
        )
    )


if __name__ == "__main__":
    main()
