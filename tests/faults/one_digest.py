"""Program: one corpus, extracted serially, on Ray, killed at random and grown in two steps, has one digest.

    python -m tests.faults.one_digest FOLDER --images 2000 --texts 3000 --kills 30 --changes 10

So it has when its sources change, or their folder vanishes, while they are read, and come back.

Prints one JSON object: what was done, the digests met, and every deviation found.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cache_schema.cache import Cache
from cache_schema.layout import MODALITIES
from cache_schema.verify import verify_cache
from tests.corpora.mixed_corpus import Corpus, write_corpus
from tests.corpora.processes import kill_group, records_of, result_of, start, wait_for
from tests.corpora.stub_teacher import stub

BATCH_ROWS = 32
# A worker is asked for all probes at once and then in one batch of the run's size, before anything else; so is a child
# that does the part at which the run before died. Before every commit a few are asked for again.
ALL_PROBES, FEW_PROBES = 16, 8


class Trial:
    """One corpus and what is measured on it."""

    def __init__(self, folder: Path, corpus: Corpus, *, part_rows: int, seconds_per_batch: float) -> None:
        self.folder = folder
        self.corpus = corpus
        self.part_rows = part_rows
        self.seconds_per_batch = seconds_per_batch
        self.wrong: list[str] = []
        self.digests: Counter[str] = Counter()
        self.lost = self.doubled = self.misnamed = 0

    def command(self, name: str, *more: str, sources: slice = slice(None)) -> list[str]:
        teacher = stub(seconds_per_batch=self.seconds_per_batch, calls=f"{self.folder / name}.calls")
        args = ["extract", "--cache", str(self.folder / name), "--teacher", teacher]
        for flag, paths in (("--images", self.corpus.images), ("--texts", self.corpus.texts)):
            args += [arg for path in paths[sources] for arg in (flag, str(path))]
        rows = ["--part-rows", str(self.part_rows), "--batch-size", str(BATCH_ROWS)]
        return [*args, *rows, "--no-index", "--decode-workers", "2", "--quiet", *more]

    def judge(self, name: str) -> None:
        """Compares the finished cache called `name` with the corpus, and notes its digest."""
        cache = Cache.open(self.folder / name)
        self.wrong += [f"{name}: {problem.where}: {problem.what}" for problem in verify_cache(cache.path)]
        self.digests["+".join(cache.array(modality).digest() for modality in cache.modalities)] += 1
        for modality in cache.modalities:
            array = cache.array(modality)
            if array.pending():
                self.wrong.append(f"{name}: {len(array.pending())} {modality} parts are pending")
            found: list[tuple[int, str]] = []
            for part in sorted(array.committed):
                sources = cache.samples(modality, part).column("source").to_pylist()
                for source, (_, key, status, _) in zip(sources, array.outcome(part), strict=True):
                    found.append((source, key))
                    if status != self.corpus.bad.get((modality, source, key), "ok"):
                        self.misnamed += 1
                        self.wrong.append(f"{name}: {modality} {key} of source {source} is called {status}")
            self.lost += len(set(self.corpus.keys[modality]) - set(found))
            self.doubled += len(found) - len(set(found))
            if found != self.corpus.keys[modality]:
                self.wrong.append(f"{name}: rows are not in plan order")


def kill_at_random(trial: Trial, *, num_kills: int, seconds: float, seed: int) -> dict[str, Any]:
    """Kills extracts after times drawn uniformly up to `seconds`, until `num_kills` are dead.

    A cache that is finished before its process is killed is judged, and the kills go on with another.
    """
    rng = random.Random(seed)
    kills = kills_in_work = finished = worst_redone = 0
    name = "killed-0"
    while kills < num_kills:
        before = committed(trial.folder / name)
        calls_before = calls_of(trial.folder / name)
        with open(trial.folder / "killed.err", "a") as log:
            process = start(*trial.command(name), log=log)
            deadline = time.monotonic() + rng.uniform(0.2, seconds)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            was_running = process.poll() is None
            in_work = (trial.folder / name / "lock.json").exists()
            kill_group(process)
        if was_running:
            kills += 1
            kills_in_work += in_work
            worst_redone = max(worst_redone, redone_parts(trial, name, before, calls_before))
        else:
            if process.returncode:
                trial.wrong.append(f"{name}: a rerun ended with {process.returncode}")
            trial.judge(name)
            finished += 1
            name = f"killed-{finished}"
    result_of(*trial.command(name))
    trial.judge(name)
    if "Traceback" in (trial.folder / "killed.err").read_text():
        trial.wrong.append("a traceback was shown")
    return {
        "kills": kills,
        "kills_while_the_cache_was_written": kills_in_work,
        "caches": finished + 1,
        "worst_redone_parts_per_kill": worst_redone,
    }


def change_and_come_back(trial: Trial, *, num_changes: int, seconds: float, seed: int) -> dict[str, Any]:
    """Changes a source, or takes the folder of all away, while an extract runs; brings it back; until so many are done.

    An extract may end with 1, 3 or 4 then, and with 0 when it was done before.
    """
    rng = random.Random(seed)
    changes, ends, name, finished = 0, Counter[str](), "changed-0", 0
    while changes < num_changes:
        with open(trial.folder / "changed.err", "a") as log:
            process = start(*trial.command(name), log=log)
            # What changes before it is planned is planned as it is then.
            plans = [trial.folder / name / modality / "plan.json" for modality in MODALITIES]
            wait_for(partial(all_exist, plans), process)
            deadline = time.monotonic() + rng.uniform(0, seconds)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            if process.poll() is None:
                changes += 1
                bring_back = rng.choice([take_away, replace_one])(trial.corpus, rng)
                process.wait(timeout=600)
                bring_back()
        ends[str(process.returncode)] += 1
        if process.returncode == 0:
            trial.judge(name)
            finished += 1
            name = f"changed-{finished}"
        elif process.returncode not in (1, 3, 4):
            trial.wrong.append(f"{name}: an extract whose sources changed ended with {process.returncode}")
    result_of(*trial.command(name))
    trial.judge(name)
    if "Traceback" in (trial.folder / "changed.err").read_text():
        trial.wrong.append("a traceback was shown")
    return {"changes": changes, "ends_of_changed_extracts": dict(ends)}


def all_exist(paths: Sequence[Path]) -> bool:
    return all(path.exists() for path in paths)


def take_away(corpus: Corpus, rng: random.Random) -> Callable[[], object]:
    """Renames the folder of all sources, and leaves an empty one or none; returns what undoes it."""
    folder = corpus.images[0].parent
    away = folder.with_name("away")
    folder.rename(away)
    if rng.random() < 0.5:
        folder.mkdir()

    def undo() -> None:
        if folder.exists():
            folder.rmdir()
        away.rename(folder)

    return undo


def replace_one(corpus: Corpus, rng: random.Random) -> Callable[[], object]:
    """Puts another file of the same size in the place of a source; returns what undoes it."""
    path = rng.choice([*corpus.images, *corpus.texts])
    kept = path.with_name(path.name + ".kept")
    path.rename(kept)
    data = kept.read_bytes()
    path.write_bytes(data.replace(b"e", b"i") if path in corpus.texts else data[:512] + data[512:][::-1])
    return lambda: kept.replace(path)


def committed(path: Path) -> set[tuple[str, int]]:
    """Returns (modality, part) of every part with a record."""
    return {(record.parts[-5], int(record.stem)) for record in records_of(path)}


def calls_of(path: Path) -> Counter[str]:
    """Returns the batches that the teacher saw so far, without those of a few probes."""
    calls = path.with_name(path.name + ".calls")
    lines = calls.read_text().splitlines() if calls.exists() else []
    return Counter(line for line in lines if not line.endswith(f" {FEW_PROBES}"))


def redone_parts(trial: Trial, name: str, before: set[tuple[str, int]], calls_before: Counter[str]) -> int:
    """Returns how many parts the last attempt computed, at least in part, without committing them."""
    whole = Cache.open(trial.folder / "serial")
    calls = calls_of(trial.folder / name) - calls_before
    probed = sum(count for line, count in calls.items() if line.endswith(f" {ALL_PROBES}"))
    batches = calls.total() - 2 * probed
    for modality, part in committed(trial.folder / name) - before:
        batches -= -(-whole.array(modality).record(part).num_ok // BATCH_ROWS)  # type: ignore[arg-type]
    # Killed inside its admission, or describing its teacher first, a run has seen fewer.
    return -(-max(0, batches) * BATCH_ROWS // trial.part_rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for flag, default in (
        ("--images", 2000),
        ("--texts", 3000),
        ("--kills", 30),
        ("--changes", 10),
        ("--part-rows", 256),
        ("--seed", 0),
    ):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--seconds-per-batch", type=float, default=0.05)
    parser.add_argument("--longest", type=float, help="seconds until a kill [default: those of the serial extract]")
    parser.add_argument("--without-ray", action="store_true")
    args = parser.parse_args()
    corpus = write_corpus(args.folder / "corpus", num_images=args.images, num_texts=args.texts)
    trial = Trial(args.folder, corpus, part_rows=args.part_rows, seconds_per_batch=args.seconds_per_batch)
    begun = time.monotonic()
    num_parts = result_of(*trial.command("serial"))["num_parts"]
    seconds = time.monotonic() - begun
    trial.judge("serial")
    if not args.without_ray:
        result_of(*trial.command("ray", "--executor", "ray", "--workers", "2"))
        trial.judge("ray")
    longest = args.longest or seconds
    changed = change_and_come_back(trial, num_changes=args.changes, seconds=longest, seed=args.seed)
    killed = kill_at_random(trial, num_kills=args.kills, seconds=longest, seed=args.seed)
    result_of(*trial.command("grown", sources=slice(1)))
    result_of(*trial.command("grown"))
    trial.judge("grown")
    print(
        json.dumps(
            {
                "images": args.images,
                "texts": args.texts,
                "bad": len(corpus.bad),
                "parts": num_parts,
                **killed,
                **changed,
                "judged_caches": trial.digests.total(),
                "digests": len(trial.digests),
                "rows_lost": trial.lost,
                "rows_doubled": trial.doubled,
                "bad_rows_with_another_status": trial.misnamed,
                "wrong": trial.wrong[:20],
            }
        )
    )


if __name__ == "__main__":
    main()
