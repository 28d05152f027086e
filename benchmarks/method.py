"""Measures what choices of method do to a student: the same cost, the same pictures, several seeds, intervals.

    python -m benchmarks.method --work FOLDER --real DATA [--effects losses "logit scale"] [--judge-by validation]
    python -m benchmarks.method --work FOLDER --demo DEMO_OUT [--seeds 3] [--steps 500]

- `--real`: 1,041 pictures with features of OpenAI's CLIP ViT-B/32 and 2,000 class sentences, brought in by `pipeline
  import`; docs/distilling.md says which files. Judged by zero-shot of CIFAR-10 pictures that are not among them: 1,000
  to choose by (`validation`) and 2,000 others (`test`).
- `--demo`: the folder that `pipeline demo --out` filled. Judged by zero-shot of the emoji groups: a fifth of the
  training pictures, kept from students, to choose by, or the demo's held-out pictures.

Every run is `stages.distill.run.distill`. A variant and its base share the seed, hence start, order and crops; `effect`
is the mean over seeds of their difference in accuracy, with a 95 % interval of Student's t. What was run is kept in
FOLDER and not run again, so that more seeds or effects can be asked for later.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.commands import print_table
from benchmarks.method_corpora import Corpus, demo_corpus, real_corpus, save_imagenet_start
from benchmarks.method_effects import BATCH, START_STUDENT, STUDENT, Changes, base_of, effects_of
from cache_schema import atomic
from cache_schema.errors import DivergedError
from stages.distill.config import DistillConfig
from stages.distill.run import distill

COLUMNS = ("effect", "variant", "accuracy", "difference", "interval", "cosine", "cpu_s")

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % points of Student's t with 1, 2 … degrees of freedom, as printed in any table."""


def half_width(values: Sequence[float]) -> float | None:
    """Returns half the 95 % interval of the mean of `values` by Student's t; None for a single one."""
    if len(values) < 2:
        return None
    return T_95[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5


def judged(corpus: Corpus, changes: Changes, *, seed: int, work: Path, num_threads: int = 1) -> dict[str, Any]:
    """Trains one student, unless it was done before, and returns how it was asked for and what it can do.

    Returns:
        JSON: `asked`, `cpu_seconds` and either `cosine` of the last step with an accuracy for each of
        `corpus.judged_by`, or `diverged`, the reason.
    """
    asked = {"images": corpus.images, **changes, "seed": seed}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    run = work / f"{corpus.name}-runs" / name
    note = run.with_suffix(".json")
    if note.exists():
        return dict(json.loads(note.read_text()))
    start_run = {"from_run": Path(asked["from_run"])} if "from_run" in asked else {}
    config = DistillConfig(
        cache=corpus.cache, out=run, num_threads=num_threads, decode_workers=1, **{**asked, **start_run}
    )
    start = time.process_time()
    try:
        trained = distill(config)
        cpu_seconds = time.process_time() - start
        judgements = {name: pictures.judge(run, corpus.class_KD) for name, pictures in corpus.judged_by.items()}
        result = {"asked": asked, "cpu_seconds": round(cpu_seconds, 1), "cosine": trained["cosine"], **judgements}
    except DivergedError as error:
        result = {"asked": asked, "cpu_seconds": round(time.process_time() - start, 1), "diverged": str(error)}
    atomic.publish_json(note, result)
    return result


def compared(
    corpus: Corpus, base: Changes, variant: Changes, *, num_seeds: int, work: Path, judge_by: str
) -> dict[str, Any]:
    """Returns the accuracy of `variant`, and its difference to `base` with its interval, over the seeds from 0.

    Returns:
        JSON: `accuracy`, `difference`, `interval` (half of it, or None), `cosine`, `cpu_s`: means over the seeds;
        `accuracies` and `base_accuracies` one a seed. With any run that diverged, only `diverged`: how many.
    """
    ours = [judged(corpus, variant, seed=seed, work=work) for seed in range(num_seeds)]
    theirs = [judged(corpus, base, seed=seed, work=work) for seed in range(num_seeds)]
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
    """Returns the base and every variant of the effects `names`, printing each to stderr when it is known."""
    options = {"num_seeds": asked.seeds, "work": asked.work, "judge_by": asked.judge_by}
    rows = [{"effect": "base", "variant": "", **compared(corpus, base, base, **options)}]
    rows[0]["interval"] = _rounded(half_width(rows[0].get("accuracies", [])))
    start = asked.work / f"{corpus.name}-imagenet-start"
    if "start" in names and not start.exists():
        save_imagenet_start(start, START_STUDENT, dim=corpus.class_KD.shape[1])
    effects = effects_of(asked.steps, asked.batch_size, start)
    for name in names:
        effect = effects[name]
        for variant, changes in effect.variants.items():
            found = compared(corpus, {**base, **effect.base}, {**base, **changes}, **options)
            rows.append({"effect": name, "variant": variant, "against": effect.against, **found})
            print(f"{name} {variant}: {found['accuracy']}", file=sys.stderr, flush=True)
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
