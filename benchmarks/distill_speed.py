"""Measures the steps of `distill` against bare training steps of the same students, and of open_clip's distillation.

    python -m benchmarks.distill_speed [--pictures FOLDER_OR_TAR] [--rounds 3] [--pairs 6]

A run of distill stops after every one of its steps to let the others do one of theirs, in the same process and with
the same threads, so that whatever else the machine does meets all of them. The claims:

- `rate_of_bare`: the rate of distill is at least 0.98 of that of a bare loop: the same tower, one batch of uint8
  pixels and features in memory, the same losses written in plain torch, fused AdamW, and nothing else. Pictures of
  distill are decoded in memory, and its crops are new in every step. With `--stored-workers N` the cache stores pixels,
  and N processes decode them: then the goal is 0.97, with a core for every worker beside those of `--threads`.
- `share_of_flops`: against open_clip's own training with `--distill-model`, which computes the teacher and both text
  towers in every step, distill's step is as many times faster (`times_faster`) as it has fewer FLOPs
  (`flops_ratio`), within 5 %. Same student tower and number of pictures; open_clip's are normalised in memory.
- `of_sum`: four students in one pass take at most 1.05 of the sum of their four bare steps.

A ratio is taken within a pair of steps that follow each other; a round is one run, and gives the median of its pairs;
the figure is the median of the rounds. `noise` is by how much a bare step differs from the next one, in the median:
what the machine does, not the program. `by_processor` is the same ratio of the training thread's processor seconds,
which other programs disturb less and waiting does not show in. `bare_share_of_flops` is `share_of_flops` with the bare
loop in place of distill. `waited_share` is the part of uninterrupted steps that waited for their batch. First and last
steps, and checkpoints, are left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from open_clip import add_model_config, create_model
from open_clip.factory import create_loss
from open_clip_train.params import parse_args
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, normalize
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.commands import median, print_table
from benchmarks.memory import write_texts
from benchmarks.pictures import payloads_of, write_folder
from benchmarks.teachers import STUB
from stages.distill.config import DistillConfig
from stages.distill.run import distill_side_by_side
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.students import build_student

DIM = 64
STORED_SIDE = 256
STEPS_ALONE = 5
LOGIT_SCALE = 100.0
CONTEXT_LENGTH = 77
VOCABULARY = 49_408
COLUMNS = ("students", "against", "figure", "goal", "ratio", "by_processor", "noise", "waited_share")

SMALL = "distill-speed-student"
LARGE = "distill-speed-teacher"
CONVOLUTIONS = "timm:resnet10t?image_size=96"
MODELS: dict[str, Any] = {
    SMALL: {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 96, "layers": 4, "width": 384, "patch_size": 16},
        "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY, "width": 128, "heads": 2, "layers": 4},
    },
    LARGE: {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 96, "layers": 12, "width": 768, "patch_size": 16},
        "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY, "width": 256, "heads": 4, "layers": 6},
    },
}
FOUR: Sequence[dict[str, Any]] = (
    {"student": f"open_clip:{SMALL}"},
    {"student": CONVOLUTIONS, "temperatures": {"pvl": 1.0}},
    {"student": CONVOLUTIONS, "learning_rate": 4e-4, "weights": {"vl": 1.0, "pvl": 0.0, "udist": 0.5}},
    {"student": "timm:resnet10t?image_size=64", "weight_decay": 0.1, "weights": {"feature": 1.0}},
)
"""What tells the four students of one pass from each other: two architectures, two sizes, losses and rates."""

Step = Callable[[], None]


class Paired:
    """Is called by distill after every step, and does one step of each of `others` before it lets distill go on.

    Args:
        others: name -> what does one step.
        alone: steps of distill before the first of the others, which are not counted.

    Attributes:
        pairs: for every counted step, name -> (wall seconds, processor seconds of this thread); distill is "distill".
    """

    def __init__(self, others: Mapping[str, Step], alone: int) -> None:
        self._others = others
        self._alone = alone
        self._resumed: tuple[float, float] | None = None
        self.pairs: list[dict[str, tuple[float, float]]] = []

    def __call__(self, done: int, total: int, unit: str, _: str = "") -> None:
        if unit != "steps" or done < self._alone or done == total:
            return
        own = {} if self._resumed is None else {"distill": _since(self._resumed)}
        others = list(self._others.items())
        # The first to go meets caches that distill has filled, so they take turns.
        for name, step in others if done % 2 else reversed(others):
            start = _now()
            step()
            own[name] = _since(start)
        if "distill" in own:
            self.pairs.append(own)
        self._resumed = _now()


def bare_step(
    specification: str,
    teacher_BD: Tensor,
    text_TD: Tensor,
    weights: Mapping[str, float],
    temperatures: Mapping[str, float],
) -> Step:
    """Returns what does one step of plain training of the tower of `specification`."""
    student = build_student(specification, DIM, seed=0)
    tower = student.tower.train().to(memory_format=student.memory_format)
    pixels_BHWC = torch.randint(0, 256, (len(teacher_BD), *student.preprocess.size, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (student.preprocess.mean, student.preprocess.std))
    optimizer = torch.optim.AdamW(tower.parameters(), lr=8e-4, weight_decay=0.05, fused=True)
    wanted = {name: weight for name, weight in weights.items() if weight}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
        z_BD = normalize(tower(pixels_BCHW), dim=-1)
        parts = [
            weight * _plain_loss(name, z_BD, teacher_BD, text_TD, LOGIT_SCALE / temperatures.get(name, 1.0))
            for name, weight in wanted.items()
        ]
        torch.stack(parts).sum().backward()
        optimizer.step()

    return step


def open_clip_step(batch_size: int) -> Step:
    """Returns what does one step of open_clip's training of SMALL with LARGE as its `--distill-model`."""
    named = ("--model", SMALL, "--distill-model", LARGE, "--distill-pretrained", "random", "--precision", "fp32")
    asked = parse_args([*named, "--batch-size", str(batch_size)])
    # What open_clip_train.main sets itself, for one process on the CPU.
    settings = {"device": "cpu", "distill": True, "rank": 0, "world_size": 1, "skip_scheduler": True, "wandb": False}
    vars(asked).update(settings)
    model, teacher = create_model(SMALL, output_dict=True), create_model(LARGE, output_dict=True)
    optimizer = torch.optim.AdamW(_as_open_clip_groups(model, asked.wd), lr=asked.lr, betas=(asked.beta1, asked.beta2))
    loss = create_loss(asked)
    size = MODELS[SMALL]["vision_cfg"]["image_size"]
    batch = (torch.randn(batch_size, 3, size, size), torch.randint(1, VOCABULARY, (batch_size, CONTEXT_LENGTH)))
    data = {"train": SimpleNamespace(dataloader=_OneBatch(batch), set_epoch=lambda _: None)}

    def step() -> None:
        train_one_epoch(model, data, loss, 0, optimizer, None, None, teacher, asked)

    return step


class _OneBatch:
    """A loader of open_clip that has one batch, and says that it has many so that no end of an epoch is logged."""

    num_batches = 1 << 20

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self._batch = batch
        self.num_samples = self.num_batches * len(batch[0])

    def __iter__(self) -> Any:
        return iter([self._batch])


def make_cache(folder: Path, payloads: list[bytes], num_texts: int, *, stored: bool) -> Path:
    """Returns a cache of the pictures and of sentences, filled by a stub teacher; `stored`: with stored pixels."""
    config = ExtractConfig(
        cache=folder / "cache",
        images=(str(write_folder(folder / "pictures", payloads)),),
        texts=(str(write_texts(folder / "texts.txt", num_texts)),),
        teacher=STUB,
        decode_workers=1,
        store_pixels=STORED_SIDE if stored else None,
        index=False,
    )
    with open_job(config) as job:
        with job.make_worker() as worker:
            for task in job.tasks:
                worker(task)
        job.finish()
    return config.cache


class Benchmark:
    """What is measured over one cache, a round at a time.

    Args:
        cache: of pictures and sentences.
        folder: where runs are written.
        asked: the sizes.
    """

    def __init__(self, cache: Path, folder: Path, asked: argparse.Namespace) -> None:
        self._cache = cache
        self._folder = folder
        self._asked = asked
        self._num_runs = 0
        with_teacher = open_clip_step(asked.batch_size)
        self._open_clip = {"open_clip": with_teacher}
        (small,) = self._bare_steps(self._configs([FOUR[0]]))
        self.flops_ratio = _flops_of(with_teacher) / _flops_of(small)

    def round(self) -> dict[str, dict[str, Any]]:
        """Returns what one round gives, measurement -> figure -> value."""
        attention, waited_attention = self._run([FOUR[0]], self._open_clip)
        convolutions, waited_convolutions = self._run([FOUR[1]])
        four, waited_four = self._run(FOUR)
        times_faster = _ratio(attention, ("open_clip",), ("distill",))
        return {
            "attention": {**_against_bare(attention, 1), "waited_share": waited_attention},
            "convolutions": {**_against_bare(convolutions, 1), "waited_share": waited_convolutions},
            "open_clip": {
                "open_clip_s": statistics.median(pair["open_clip"][0] for pair in attention),
                "times_faster": times_faster,
                "share_of_flops": times_faster / self.flops_ratio,
                "by_processor": _ratio(attention, ("open_clip",), ("distill",), clock=1) / self.flops_ratio,
                "bare_share_of_flops": _ratio(attention, ("open_clip",), ("bare 0",)) / self.flops_ratio,
            },
            "four": {**_against_bare(four, len(FOUR)), "waited_share": waited_four},
        }

    def _run(self, students: Sequence[dict[str, Any]], others: Mapping[str, Step] | None = None) -> tuple[Any, float]:
        """Returns the pairs of a run of distill, and the share of its uninterrupted steps that waited for batches."""
        configs = self._configs(students)
        steps = self._bare_steps(configs)
        bare = {f"bare {place}": step for place, step in enumerate(steps)}
        paired = Paired({**bare, **(others or {})}, STEPS_ALONE)
        distill_side_by_side(configs, progress=paired)
        lines = [json.loads(line) for line in (configs[0].out / "speed.jsonl").read_text().splitlines()]
        alone = lines[1:STEPS_ALONE]
        return paired.pairs, sum(line["waited_seconds"] for line in alone) / sum(line["seconds"] for line in alone)

    def _configs(self, students: Sequence[dict[str, Any]]) -> list[DistillConfig]:
        self._num_runs += 1
        shared = {
            "cache": self._cache,
            "batch_size": self._asked.batch_size,
            "text_batch_size": self._asked.batch_size,
            "micro_batch_size": self._asked.batch_size,
            "steps": STEPS_ALONE + self._asked.pairs + 1,
            "num_threads": self._asked.threads,
            "decode_workers": self._asked.stored_workers or 1,
            "checkpoint_seconds": 1e9,
            **({"picture_memory_bytes": 0} if self._asked.stored_workers else {}),
        }
        folder = self._folder / f"runs-{self._num_runs}"
        return [DistillConfig(out=folder / str(place), **shared, **own) for place, own in enumerate(students)]

    def _bare_steps(self, configs: Sequence[DistillConfig]) -> list[Step]:
        teacher_BD, text_TD = (normalize(torch.randn(self._asked.batch_size, DIM), dim=-1) for _ in range(2))
        return [
            bare_step(config.student or "", teacher_BD, text_TD, config.weights, config.temperatures)
            for config in configs
        ]


def _against_bare(pairs: Sequence[Any], num_students: int) -> dict[str, Any]:
    bare = [f"bare {place}" for place in range(num_students)]
    of_sum, by_processor = (_ratio(pairs, ("distill",), bare, clock=clock) for clock in (0, 1))
    sums = [sum(pair[name][0] for name in bare) for pair in pairs]
    found = {"distill_s": statistics.median(pair["distill"][0] for pair in pairs)}
    if num_students == 1:
        found |= {"rate_of_bare": 1 / of_sum, "by_processor": 1 / by_processor}
    else:
        found |= {"of_sum": of_sum, "by_processor": by_processor}
    return {**found, "noise": statistics.median(abs(one / other - 1) for one, other in pairwise(sums))}


def _ratio(pairs: Sequence[Any], above: Sequence[str], below: Sequence[str], *, clock: int = 0) -> float:
    """Returns the median over the pairs of the sum of steps `above` divided by the sum of those `below`."""
    return statistics.median(
        sum(pair[name][clock] for name in above) / sum(pair[name][clock] for name in below) for pair in pairs
    )


def _plain_loss(name: str, z_BD: Tensor, teacher_BD: Tensor, text_TD: Tensor, scale: float) -> Tensor:
    """Returns a loss of the method as its publication writes it, from features of unit norm."""

    def divergence(left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor) -> Tensor:
        target, ours = (log_softmax(scale * (a @ b.T), dim=1) for a, b in ((left, right), (of_left, of_right)))
        return kl_div(ours, target, reduction="batchmean", log_target=True)

    match name:
        case "vl":
            rows = divergence(teacher_BD, text_TD, z_BD, text_TD)
            return rows + divergence(text_TD, teacher_BD, text_TD, z_BD)
        case "pvl":
            return 2 * divergence(teacher_BD, teacher_BD, z_BD, teacher_BD)
        case "udist":
            return 2 * divergence(teacher_BD, teacher_BD, z_BD, z_BD)
        case _:
            return (1 - (z_BD * teacher_BD).sum(dim=1)).mean()


def _as_open_clip_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the groups of parameters that open_clip_train.main makes."""
    exempt, rest = [], []
    for name, parameter in model.named_parameters():
        is_exempt = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (exempt if is_exempt else rest).append(parameter)
    return [{"params": exempt, "weight_decay": 0.0}, {"params": rest, "weight_decay": weight_decay}]


def _flops_of(step: Step) -> int:
    """Returns the FLOPs of the matrix products and convolutions of a step."""
    fused = torch.backends.mha.get_fastpath_enabled()
    # The counter does not know the fused attention of evaluation, which computes the same products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            step()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    wall, processor = _now()
    return wall - start[0], processor - start[1]


def _row(result: dict[str, Any], name: str, against: str, figure: str, goal: str) -> dict[str, Any]:
    found = result[name]
    return {"students": name, "against": against, "figure": figure, "goal": goal, "ratio": found[figure], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder or tar of JPEG pictures; else the demo's drawings")
    parser.add_argument("--rows", type=int, default=128, help="pictures of the cache, and sentences")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=6, help="steps of a run that count, at least 2")
    parser.add_argument("--threads", type=int, default=1, help="of all that trains; another one makes the crops")
    parser.add_argument(
        "--stored-workers",
        type=int,
        default=0,
        help="processes that decode stored pixels; 0: in memory",
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, model in MODELS.items():
            (folder / f"{name}.json").write_text(json.dumps(model))
            add_model_config(folder / f"{name}.json")
        torch.set_num_threads(asked.threads)
        cache = make_cache(folder, payloads_of(asked.pictures, asked.rows), asked.rows, stored=asked.stored_workers > 0)
        benchmark = Benchmark(cache, folder, asked)
        rounds = [benchmark.round() for _ in range(asked.rounds)]
    result: dict[str, Any] = {
        "batch_size": asked.batch_size,
        "threads": asked.threads,
        "flops_ratio": round(benchmark.flops_ratio, 3),
    }
    for name, figures in rounds[0].items():
        values = {figure: [one[name][figure] for one in rounds] for figure in figures}
        result[name] = {figure: median(several) for figure, several in values.items()}
        result[name]["rounds"] = {figure: [round(value, 3) for value in several] for figure, several in values.items()}
    print_table(
        [
            _row(result, "attention", "bare", "rate_of_bare", ">= 0.98"),
            _row(result, "convolutions", "bare", "rate_of_bare", ">= 0.98"),
            _row(result, "open_clip", "flops_ratio", "share_of_flops", ">= 0.95"),
            _row(result, "four", "sum of bare", "of_sum", "<= 1.05"),
        ],
        COLUMNS,
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
