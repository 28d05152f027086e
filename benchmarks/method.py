"""Measures what choices of method do to a student: the same cost, the same pictures, several seeds, intervals.

    python -m benchmarks.method --work FOLDER --real DATA [--effects losses "logit scale"] [--judge-by validation]
    python -m benchmarks.method --work FOLDER --demo DEMO_OUT [--seeds 3] [--steps 500]

- `--real`: 1,041 pictures with features of OpenAI's CLIP ViT-B/32 and 2,000 class sentences, brought in by `pipeline
  import`; docs/distilling.md says which files. Judged by zero-shot of CIFAR-10 pictures that are not among them: 1,000
  to choose by (`validation`) and 2,000 others (`test`).
- `--demo`: the folder that `pipeline demo --out` filled. Judged by zero-shot of the emoji groups: a fifth of the
  training pictures, kept from students, to choose by, or the demo's held-out pictures.

Students train by `stages.distill.run`, those that share pictures and sentences in one pass. A variant and its base
share the seed, hence start, order and crops; `effect` is the mean over seeds of their difference in accuracy, with a
95 % interval of Student's t. What was run is kept in FOLDER and not run again, so that more seeds or effects can be
asked for later.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.commands import print_table
from benchmarks.method_corpora import Corpus, demo_corpus, real_corpus, start_weights
from benchmarks.method_effects import BATCH, STUDENT, Changes, base_of, effects_of
from cache_schema import atomic
from cache_schema.errors import DivergedError, PipelineError
from cache_schema.json_file import read_json
from stages.distill.config import DistillConfig, Method
from stages.distill.run import distill, distill_side_by_side
from stages.settings.declare import settings_in

COLUMNS = ("effect", "variant", "accuracy", "difference", "interval", "cosine", "cpu_s")

MOST_IN_ONE_PASS = 8
"""Students; more need more memory, and a pass that is cut short repeats more."""

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % points of Student's t with 1, 2 … degrees of freedom, as printed in any table."""


def half_width(values: Sequence[float]) -> float | None:
    """Returns half the 95 % interval of the mean of `values` by Student's t; None for a single one."""
    if len(values) < 2:
        return None
    return T_95[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5


def train_all(corpus: Corpus, wanted: Sequence[Changes], *, seed: int, work: Path, num_threads: int = 1) -> None:
    """Trains the students of `wanted` that were not trained before, and notes what each can do.

    Those that agree in what students of one pass share are trained in one, at most `MOST_IN_ONE_PASS` of them, each as
    if it were alone. A note is JSON: `asked`, `cpu_seconds` (its share of the pass) and either `cosine` of the last
    step with an accuracy for each of `corpus.judged_by`, or `diverged`, the reason.
    """
    shared = [name for name, about in settings_in(Method).items() if not about.own]
    passes: dict[str, dict[Path, tuple[Changes, DistillConfig]]] = {}
    for changes in wanted:
        note = _note_of(corpus, changes, seed, work)
        if not note.exists():
            config = _configuration(corpus, changes, seed, note.with_suffix(""), num_threads)
            feed = repr([getattr(config, name) for name in shared])
            passes.setdefault(feed, {})[note] = (_asked(corpus, changes, seed), config)
    for students in passes.values():
        some = list(students.items())
        for first in range(0, len(some), MOST_IN_ONE_PASS):
            _train_pass(corpus, dict(some[first : first + MOST_IN_ONE_PASS]))


def _train_pass(corpus: Corpus, students: Mapping[Path, tuple[Changes, DistillConfig]]) -> None:
    start = time.process_time()
    with suppress(PipelineError):
        # One that fails does not keep the others from their end; its own error is looked at below.
        distill_side_by_side([config for _, config in students.values()])
    cpu_seconds = round((time.process_time() - start) / len(students), 1)
    for note, (asked, config) in students.items():
        found: dict[str, Any] = {"asked": asked, "cpu_seconds": cpu_seconds}
        try:
            # Returns the result of a run that has ended, and fails again where it failed.
            found["cosine"] = distill(config)["cosine"]
            found |= {name: pictures.judge(config.out, corpus.class_KD) for name, pictures in corpus.judged_by.items()}
        except DivergedError as error:
            found["diverged"] = str(error)
        atomic.publish_json(note, found)


def _configuration(corpus: Corpus, changes: Changes, seed: int, run: Path, num_threads: int) -> DistillConfig:
    asked = _asked(corpus, changes, seed)
    paths = {name: Path(asked[name]) for name in ("from_run", "init") if name in asked}
    return DistillConfig(cache=corpus.cache, out=run, num_threads=num_threads, decode_workers=1, **{**asked, **paths})


def _asked(corpus: Corpus, changes: Changes, seed: int) -> dict[str, Any]:
    return {"images": corpus.images, **changes, "seed": seed}


def _note_of(corpus: Corpus, changes: Changes, seed: int, work: Path) -> Path:
    """Returns the file with what a student can do; its run has the same name without the ending."""
    asked = json.dumps(_asked(corpus, changes, seed), sort_keys=True)
    return work / f"{corpus.name}-runs" / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"


def compared(
    corpus: Corpus, base: Changes, variant: Changes, *, num_seeds: int, work: Path, judge_by: str
) -> dict[str, Any]:
    """Returns the accuracy of `variant`, and its difference to `base` with its interval, over the seeds from 0.

    `train_all` has trained both.

    Returns:
        JSON: `accuracy`, `difference`, `interval` (half of it, or None), `cosine`, `cpu_s`: means over the seeds;
        `accuracies` and `base_accuracies` one a seed. With any run that diverged, only `diverged`: how many.
    """
    ours, theirs = (
        [read_json(_note_of(corpus, changes, seed, work)) for seed in range(num_seeds)] for changes in (variant, base)
    )
    diverged = sum("diverged" in run for run in (*ours, *theirs))
    if diverged:
        return {"diverged": diverged, "accuracy": "diverged"}
    pairs = [
        (mine[judge_by]["accuracy"], other[judge_by]["accuracy"]) for mine, other in zip(ours, theirs, strict=True)
    ]
    differences = [mine - other for mine, other in pairs]
    return {
        "accuracy": round(statistics.mean(mine for mine, _ in pairs), 4),
        "difference": round(statistics.mean(differences), 4),
        "interval": _rounded(half_width(differences)),
        "cosine": round(statistics.mean(run["cosine"] for run in ours), 3),
        "cpu_s": round(statistics.mean(run["cpu_seconds"] for run in ours)),
        "accuracies": [mine for mine, _ in pairs],
        "base_accuracies": [other for _, other in pairs],
        "changes": dict(variant),
    }


def measure(corpus: Corpus, base: Changes, names: Sequence[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the base and every variant of the effects `names`; says on stderr when a seed is done."""
    start = {"start": start_weights(asked.work)} if "start" in names else {}
    effects = effects_of(asked.steps, asked.batch_size, **start)
    pairs = [
        (name, variant, {**base, **effects[name].base}, {**base, **changes})
        for name in names
        for variant, changes in effects[name].variants.items()
    ]
    wanted = [base, *(changes for _, _, *both in pairs for changes in both)]
    for seed in range(asked.seeds):
        train_all(corpus, wanted, seed=seed, work=asked.work)
        print(f"{corpus.name}: seed {seed} is done", file=sys.stderr, flush=True)
    options = {"num_seeds": asked.seeds, "work": asked.work, "judge_by": asked.judge_by}
    rows = [{"effect": "base", "variant": "", **compared(corpus, base, base, **options)}]
    rows[0]["interval"] = _rounded(half_width(rows[0].get("accuracies", [])))
    for name, variant, against, changes in pairs:
        found = compared(corpus, against, changes, **options)
        rows.append({"effect": name, "variant": variant, "against": effects[name].against, **found})
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def main() -> None:
    known = effects_of(1, 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for caches and runs")
    parser.add_argument("--real", type=Path, metavar="DATA", help="folder of the real features")
    parser.add_argument("--demo", type=Path, metavar="DEMO_OUT", help="folder of a finished demo")
    parser.add_argument(
        "--effects", nargs="*", choices=known, default=list(known), metavar="NAME", help=", ".join(known)
    )
    parser.add_argument("--seeds", type=int, default=3, help="1 to 10")
    parser.add_argument("--student", default=STUDENT)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--min-crop", type=float, default=0.4)
    parser.add_argument("--base", type=json.loads, default={}, metavar="JSON", help="more fields of the base")
    parser.add_argument("--judge-by", choices=("validation", "test"), default="validation")
    asked = parser.parse_args()
    if not 1 <= asked.seeds <= len(T_95) + 1:
        parser.error(f"--seeds {asked.seeds}: use 1 to {len(T_95) + 1}")
    if asked.real is None and asked.demo is None:
        parser.error("name a corpus: --real DATA, --demo DEMO_OUT, or both")
    asked.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    corpora = [] if asked.real is None else [real_corpus(asked.real, asked.work)]
    corpora += [] if asked.demo is None else [demo_corpus(asked.demo, asked.work)]
    base = base_of(
        student=asked.student,
        steps=asked.steps,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        min_crop=asked.min_crop,
    )
    result: dict[str, Any] = {"seeds": asked.seeds, "judged_by": asked.judge_by, "base": {**base, **asked.base}}
    for corpus in corpora:
        rows = measure(corpus, {**base, **asked.base}, asked.effects, asked)
        print_table(rows, COLUMNS)
        teacher = {"teacher_top1": round(corpus.teacher_top1, 4), "teacher_on": corpus.teacher_on}
        result[corpus.name] = {**teacher, "chance": round(1 / len(corpus.class_KD), 3), "rows": rows}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
