"""The first steps of a distillation once more, in plain torch, NumPy, zarr, pyarrow and Pillow: nothing of `stages`.

Written from the documents and docstrings alone, so that a step of `distill` is right when this program takes the same.
It is exact, not fast: everything that is learnt is float64.

Shape letters: B images of a step, T sentences of a step, D width of a feature.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import zarr
from open_clip.timm_model import TimmModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

ORDER, SENTENCES = 1, 2
# Of open_clip's image towers, `OPENAI_DATASET_MEAN` and `OPENAI_DATASET_STD`.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double()
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double()


@dataclass(frozen=True)
class Asked:
    """What is asked of a run, in plain values; every default is said.

    Attributes:
        cache: folder of the cache.
        pictures: folder of the originals, whose names are the keys.
        array: name of the teacher's arrays, without the view.
        part_rows: of the cache.
        backbone: of timm.
        size: side of the student's input.
        peak: the learning rate after `num_warmup` steps, which begin with `warmup_start`; the last of all has `least`.
        neighbours: folder of mined neighbours; None draws all sentences.
        drop: dropout before the projection.
        views: of the teacher that are replayed; none when the student draws its own crops.
        view_seed: of those views.
        start: weights of the image tower that an earlier round left; None starts from the seed.
    """

    cache: Path
    pictures: Path
    array: str
    part_rows: int
    backbone: str
    size: int
    num_steps: int
    batch_size: int
    text_batch_size: int
    logit_scale: float
    weights: Mapping[str, float]
    temperatures: Mapping[str, float]
    peak: float
    least: float
    warmup_start: float
    num_warmup: int
    weight_decay: float
    min_crop: float
    flip: bool
    seed: int
    window_parts: int
    mined_share: float = 0.0
    drop: float = 0.0
    views: tuple[int, ...] = ()
    view_seed: int = 0
    neighbours: Path | None = None
    start: Path | None = None


@dataclass(frozen=True)
class Step:
    """One step: the gradient of every parameter, and the weights after it."""

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def trajectory(asked: Asked) -> Iterator[Step]:
    """Yields one step after the other, for ever."""
    student = student_of(asked).train()
    names = dict(student.named_parameters())
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in names.items()}
    step = 0
    while True:
        pixels, teacher_BD, text_TD = inputs(asked, step)
        torch.manual_seed(number(f"dropout {asked.seed} {step} 0".encode(), 8) >> 1)
        student.zero_grad()
        loss(asked, student(pixels), teacher_BD, text_TD).backward()
        for name, parameter in names.items():
            adamw(asked, step, parameter, *moments[name], decays=decays(name, parameter))
        step += 1
        yield Step(
            {name: p.grad.clone() for name, p in names.items()},
            {name: p.detach().clone() for name, p in names.items()},
        )


def student_of(asked: Asked) -> torch.nn.Module:
    """Returns the student before the first step."""
    torch.manual_seed(asked.seed)
    width = features(asked, "image", "v0").shape[1]
    student = TimmModel(asked.backbone, width, asked.size, pool="", proj="linear", drop=asked.drop)
    if asked.start is not None:
        student.load_state_dict(load_file(asked.start))
    return student.double()


def inputs(asked: Asked, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the pixels of a step, the teacher's features of its images and those of its sentences."""
    views = [f"v{view}" for view in asked.views or (0,)]
    rows = finite_rows(*(features(asked, "image", view) for view in views))
    texts = finite_rows(features(asked, "text", "v0"))
    keys = dict(zip(*(column(asked, name) for name in ("row", "key")), strict=True))
    chosen, pixels, teacher = [], [], []
    for place in range(step * asked.batch_size, (step + 1) * asked.batch_size):
        epoch, offset = divmod(place, len(rows))
        row = order(asked, rows, epoch)[offset]
        chosen.append(row)
        teacher.append(features(asked, "image", views[epoch % len(views)])[row])
        pixels.append(picture(asked, asked.pictures / keys[row], epoch))
    sentences = sentences_of(asked, step, chosen, texts)
    return torch.stack(pixels), unit(np.stack(teacher)), unit(features(asked, "text", "v0")[sentences])


def features(asked: Asked, modality: str, view: str) -> np.ndarray:
    group = zarr.open_group(asked.cache / modality / "features.zarr", mode="r")
    return group[f"{asked.array}.{view}"][:].astype(np.float64)


def finite_rows(*arrays: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.logical_and.reduce([np.isfinite(array).all(axis=1) for array in arrays]))


def column(asked: Asked, name: str) -> list:
    tables = sorted((asked.cache / "image" / "samples").glob("*.parquet"))
    return [value for table in tables for value in pq.read_table(table, columns=[name])[name].to_pylist()]


def unit(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def number(data: bytes, size: int, **options: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=size, **options).digest(), "little")


def generator(what: int, rows: np.ndarray, seed: int, place: int) -> np.random.Generator:
    high, low = divmod(number(rows.astype("<i8").tobytes(), 16), 2**64)
    return np.random.default_rng([what, low, high, seed, place])


def order(asked: Asked, rows: np.ndarray, epoch: int) -> list[int]:
    """Parts are shuffled, then the rows of every `window_parts` of them."""
    draw = generator(ORDER, rows, asked.seed, epoch)
    parts = draw.permutation(sorted({row // asked.part_rows for row in rows})).tolist()
    found: list[int] = []
    while parts:
        window, parts = parts[: asked.window_parts], parts[asked.window_parts :]
        found += draw.permutation([r for part in window for r in rows if r // asked.part_rows == part]).tolist()
    return found


def sentences_of(asked: Asked, step: int, images: list[int], texts: np.ndarray) -> list[int]:
    """The images' neighbours, the best of all first, up to their share; the rest drawn among all others."""
    mined: list[int] = []
    if asked.neighbours is not None:
        ids = zarr.open_group(asked.neighbours / "neighbours.zarr", mode="r")["ids"][:]
        ranked = [int(ids[image, rank]) for rank in range(ids.shape[1]) for image in images]
        mined = list(dict.fromkeys(row for row in ranked if row in texts))
        mined = mined[: int(asked.mined_share * asked.text_batch_size)]
    drawn = generator(SENTENCES, texts, asked.seed, step).choice(texts, asked.text_batch_size, replace=False)
    return (mined + [row for row in drawn.tolist() if row not in mined])[: asked.text_batch_size]


def picture(asked: Asked, path: Path, epoch: int) -> Tensor:
    """Returns the crop that an epoch shows, mirrored or not, as the student's input."""
    image = Image.open(path).convert("RGB")
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    if asked.views:
        seed, view, least = asked.view_seed, asked.views[epoch % len(asked.views)], 0.08
    else:
        seed, view, least = asked.seed, epoch + 1, asked.min_crop
    box, mirrored = crop(seed, view, digest, *image.size, least)
    shown = image.crop(box).resize((asked.size, asked.size), Image.Resampling.BICUBIC)
    if mirrored and (asked.flip or asked.views):
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(shown)).double() / 255
    return ((pixels - MEAN) / STD).permute(2, 0, 1)


def crop(seed: int, view: int, digest: bytes, width: int, height: int, least: float) -> tuple[tuple, bool]:
    """Returns a random resized crop as (left, top, right, bottom), and whether it is mirrored."""
    identity = seed.to_bytes(8, "little") + view.to_bytes(8, "little") + digest

    def draws(block: int) -> list[int]:
        bits = number(identity + bytes([block]), 32, person=b"view-crop")
        return [bits >> 64 * place & 2**64 - 1 for place in range(4)]

    mirrored = draws(255)[0] % 2 == 1
    for attempt in range(10):
        first, second, third, fourth = draws(attempt)
        area = width * height * (least + (1 - least) * (first / 2**64))
        aspect = 3 / 4 * (16 / 9) ** (second / 2**64)
        box = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box[0] <= width and box[1] <= height:
            left, top = third * (width - box[0] + 1) >> 64, fourth * (height - box[1] + 1) >> 64
            return (left, top, left + box[0], top + box[1]), mirrored
    raise AssertionError("the pictures of this test have no extreme aspect")


def loss(asked: Asked, image_BD: Tensor, teacher_BD: Tensor, text_TD: Tensor) -> Tensor:
    """Returns the weighted sum of the losses: three of DIME-FM (arXiv 2303.18232), and the cosine of each pair."""
    z, u, v = torch.nn.functional.normalize(image_BD, dim=1), teacher_BD, text_TD

    def divergence(teacher: Tensor, student: Tensor, name: str) -> Tensor:
        scale = asked.logit_scale / asked.temperatures[name]
        p, q = (scale * teacher).softmax(dim=1), (scale * student).softmax(dim=1)
        return (p * (p.log() - q.log())).sum() / len(p)

    losses = {
        "vl": divergence(u @ v.T, z @ v.T, "vl") + divergence(v @ u.T, v @ z.T, "vl"),
        "pvl": 2 * divergence(u @ u.T, z @ u.T, "pvl"),
        "udist": 2 * divergence(u @ u.T, z @ z.T, "udist"),
        "feature": (1 - (z * u).sum(dim=1)).mean(),
    }
    return sum((asked.weights[name] * value for name, value in losses.items()), torch.zeros(()))


def rate(asked: Asked, step: int) -> float:
    """Returns the learning rate: a straight line up to the peak, then half a cosine down to the least."""
    if step < asked.num_warmup:
        return asked.warmup_start + (asked.peak - asked.warmup_start) * step / asked.num_warmup
    progress = (step - asked.num_warmup) / (asked.num_steps - 1 - asked.num_warmup)
    return asked.least + (asked.peak - asked.least) * (1 + math.cos(math.pi * progress)) / 2


def decays(name: str, parameter: Tensor) -> bool:
    """Returns whether a parameter decays: biases, norms, positional tables and class tokens do not."""
    return parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token", "reg_token"))


@torch.no_grad()
def adamw(asked: Asked, step: int, parameter: Tensor, first: Tensor, second: Tensor, *, decays: bool) -> None:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, with betas 0.9 and 0.999."""
    gradient = parameter.grad
    assert gradient is not None
    first.mul_(0.9).add_(0.1 * gradient)
    second.mul_(0.999).add_(0.001 * gradient**2)
    corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
    moved = corrected[0] / (corrected[1].sqrt() + 1e-8)
    parameter.sub_(rate(asked, step) * (moved + (asked.weight_decay if decays else 0.0) * parameter))
