"""From a configuration and its cache to a feed and a job: every default resolved, every input opened."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import MismatchError, RefusedError, UsageError, unknown_name
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.neighbours import NeighboursReader
from cache_schema.recipe import differences
from cache_schema.selections import Selection, read_selection
from stages.device import torch_device
from stages.distill.config import (
    DEFAULT_STUDENT,
    LARGEST_DEFAULT_BATCH,
    LARGEST_DEFAULT_NORM_BATCH,
    DistillConfig,
    Method,
    ResolvedMethod,
    Running,
)
from stages.distill.feed import Feed
from stages.distill.held_out import HeldOut, held_out_rows, without_held_out
from stages.distill.job import DistillJob
from stages.distill.losses import LOSSES
from stages.distill.order import EpochSequence
from stages.distill.payloads import Originals, SmallPictures, pixels_to_train_on
from stages.distill.pictures import fit_in_memory
from stages.distill.replay import Replay, views_of
from stages.distill.rows import Rows, rows_in_all
from stages.export.model_folder import load_trained, read_trained_sha256
from stages.runs.folder import RunFolder
from stages.runs.record import micro_batch_of_format_1, read_record
from stages.runs.reference import find_checkpoint
from stages.settings.record import values_of
from stages.sources.feature_rows import require_pictures
from stages.students import Student, build_student
from stages.students.saved import DESCRIPTION_NAME
from stages.students.starts import Start, start_of_student

_EPOCHS = 100
_ALL_PARTS_UP_TO = 64
_WINDOW_PARTS = 32
_SHOWN = 10


def open_feed(config: DistillConfig) -> Feed:
    """Returns what the student of `config`, and any beside it, learns from. Writes nothing.

    Raises:
        UsageError: unknown names, or a batch that the cache or the selection cannot fill; shows both numbers.
        UnfinishedError: the cache is not complete; shows the progress.
        MismatchError: the arrays are of different teachers, or the neighbours of other arrays.
    """
    cache = Cache.open(config.cache)
    images, texts, replay = _arrays_of(config, cache)
    pixels = pixels_to_train_on(config, cache, replay)
    small = None if pixels is None else SmallPictures(pixels)
    image_selection = None if config.images is None else _selection_of(cache, "image", config.images)
    text_selection = None if config.texts is None else _selection_of(cache, "text", config.texts)
    rows = _eligible(images, image_selection, config.batch_size)
    if replay is not None:
        rows = rows_in_all(rows, replay.ok_rows())
    text_rows = _eligible(texts, text_selection, config.text_batch_size)
    held_out = None
    if config.hold_out is not None:
        held_rows = _held_out_rows(config.hold_out, cache, rows)
        rows = without_held_out(cache, rows, held_rows)
        payloads = small or Originals()
        held_out = HeldOut(cache, images, texts, held_rows, text_rows, payloads, config.num_decoders)
    return Feed(
        cache=cache,
        images=images,
        texts=texts,
        neighbours=_neighbours_of(config, cache, images, texts),
        image_selection=image_selection,
        text_selection=text_selection,
        sequence=_sequence_of(config, cache, rows, num_parts=images.plan.num_parts),
        text_rows=text_rows,
        text_batch_size=_texts_of_a_step(config, cache, text_rows),
        replay=replay,
        small=small,
        in_memory=fit_in_memory(cache, rows, config.picture_memory_bytes, small),
        held_out=held_out,
    )


def open_job(
    config: DistillConfig, feed: Feed | None = None, *, notice: Callable[[str], None] | None = None
) -> DistillJob:
    """Returns the job of `config`. Writes nothing.

    Args:
        config: what is asked.
        feed: what it learns from; None opens it.
        notice: called with a sentence about the weights that the student begins with.

    Raises:
        UsageError: unknown names, or a student that cannot be built.
        MismatchError: the student of `from_run` has another architecture.
        EnvironmentProblem: the device is absent.
        PipelineError: as `open_feed`.
    """
    for name in (*config.weights, *config.temperatures):
        if name not in LOSSES:
            raise unknown_name("loss", name, LOSSES)
    device = torch_device(config.device)
    feed = feed or open_feed(config)
    images, texts, sequence = feed.images, feed.texts, feed.sequence
    student, start_sha256 = _starting_student(config, images, texts, notice)
    batch_size = sequence.batch_size
    method = ResolvedMethod(
        **{
            **values_of(config, Method),
            "student": student.specification,
            "steps": config.steps or max(1, _EPOCHS * len(sequence.rows) // batch_size),
            "batch_size": batch_size,
            "text_batch_size": feed.text_batch_size,
            "norm_batch_size": _norm_batch_size_of(config, student, batch_size),
            "logit_scale": config.logit_scale or texts.recipe.logit_scale,
            "precision": _precision_of(config, device),
            "image_array": _named_array(images, feed.replay),
            "pictures": "originals" if feed.small is None else "stored",
            "text_array": texts.name,
            "window_parts": sequence.window_parts,
        }
    )
    return DistillJob(
        method=method,
        running=Running(**values_of(config, Running)),
        feed=feed,
        student=student.train().to(device).to(memory_format=student.memory_format),
        start_sha256=start_sha256,
        device=device,
    )


def _arrays_of(config: DistillConfig, cache: Cache) -> tuple[CachedArray, CachedArray, Replay | None]:
    images, replay = views_of(config, cache)
    texts = cache.array("text", config.text_array)
    texts.require_complete()
    require_pictures(images.plan, cache.path)
    found = differences(dict(images.recipe.teacher), dict(texts.recipe.teacher))
    found += differences({"dim": images.recipe.dim}, {"dim": texts.recipe.dim})
    if found:
        field, of_images, of_texts = found[0]
        raise MismatchError(
            f"{images} and {texts} are of different teachers ({field}: {of_images!r} and {of_texts!r}): "
            "name an image array and a text array of the same teacher"
        )
    return images, texts, replay


def _selection_of(cache: Cache, modality: Modality, name: str) -> Selection:
    selection = read_selection(cache, name)
    if selection.modality != modality:
        raise UsageError(
            f"selection {name!r} of {cache.path} is of {selection.modality} rows, --{modality}s needs {modality} rows: "
            f"name it as --{selection.modality}s, or another selection here"
        )
    return selection


def _held_out_rows(asked: str, cache: Cache, rows: Rows) -> Rows:
    """Returns the rows that `asked`, a share or the name of a selection, holds out of `rows`."""
    try:
        share = float(asked)
    except ValueError:
        selection = _selection_of(cache, "image", asked)
        found = rows_in_all(rows, selection.rows)
        if not len(found):
            raise UsageError(
                f"selection {asked!r} of {cache.path} has none of the {len(rows):,} ok images: hold out another"
            ) from None
        return found
    if not 0 < share < 1:
        raise UsageError(f"--hold-out {asked} is no share: use a number above 0 and below 1, or name a selection")
    return held_out_rows(cache, rows, share)


def _eligible(array: CachedArray, selection: Selection | None, batch_size: int | None) -> Rows:
    """Returns the ok rows of `array`, of `selection` alone where there is one; they must fill a batch."""
    rows = array.ok_rows()
    if selection is None:
        return rows
    selected = rows_in_all(rows, selection.rows)
    if (batch_size or 1) > len(selected):
        raise UsageError(
            f"a batch of {batch_size or 1:,} {array.modality}s does not fit selection {selection.name!r}, which has "
            f"{len(selected):,} of the {len(rows):,} ok {array.modality}s: "
            + (f"use a batch size from 1 to {len(selected):,}" if len(selected) else "name another selection")
        )
    return selected


def _sequence_of(config: DistillConfig, cache: Cache, rows: Rows, *, num_parts: int) -> EpochSequence:
    return EpochSequence(
        rows=rows,
        batch_size=config.batch_size or min(len(rows), LARGEST_DEFAULT_BATCH),
        part_rows=cache.part_rows,
        seed=config.seed,
        window_parts=config.window_parts or (None if num_parts <= _ALL_PARTS_UP_TO else _WINDOW_PARTS),
    )


def _texts_of_a_step(config: DistillConfig, cache: Cache, text_rows: Rows) -> int:
    num_texts = config.text_batch_size or min(len(text_rows), LARGEST_DEFAULT_BATCH)
    if not 1 <= num_texts <= len(text_rows):
        raise UsageError(
            f"text batch size {num_texts:,} does not fit the {len(text_rows):,} ok sentences of {cache.path}: "
            + (f"use 1 to {len(text_rows):,}" if len(text_rows) else "extract some sentences")
        )
    return num_texts


def _named_array(images: CachedArray, replay: Replay | None) -> str | None:
    """Returns the array that means, when it is named, the views that are seen; several in turn have no name."""
    if replay is None:
        return images.name
    return replay.arrays[0].name if len(replay.arrays) == 1 else None


def _starting_student(
    config: DistillConfig, images: CachedArray, texts: CachedArray, notice: Callable[[str], None] | None
) -> tuple[Student, str | None]:
    dim, quick_gelu = images.recipe.dim, _quick_gelu_of(dict(texts.recipe.teacher))
    if config.from_run is None:
        init = None if config.init is None else _weights_in(config.init)
        specification = config.student or (init.specification if isinstance(init, Start) else None) or DEFAULT_STUDENT
        student = build_student(specification, dim, seed=config.seed, quick_gelu=quick_gelu, init=init, notice=notice)
        return student, None
    start = config.from_run
    checkpoint = find_checkpoint(start)
    if config.out.absolute() in (start.absolute(), checkpoint and checkpoint.folder.root.absolute()):
        raise UsageError(f"--from {start} is the run's own --out: name another folder for the new round")
    if start.is_file():
        raise RefusedError(
            f"--from {start} is a file; a pickled checkpoint may run code, so it is not opened: name the folder of a "
            "run, or of a student saved with stages.students.save_image_tower"
        )
    trained = load_trained(start)
    student = build_student(config.student or trained.specification, dim, seed=config.seed, quick_gelu=quick_gelu)
    _require_same_tower(student, trained, start)
    if student.specification == trained.specification:
        # A student that began with published weights has their mean and std.
        student.description = replace(student.description, preprocess=trained.preprocess)
    student.load_state_dict(trained.state_dict())
    return student, read_trained_sha256(start)


def _weights_in(init: Path) -> Path | Start:
    """Returns the weights of the student that `init` names, or `init` itself where it names a checkpoint file."""
    is_student = any((init / name).exists() for name in ("run.json", DESCRIPTION_NAME))
    if not is_student and find_checkpoint(init) is None:
        return init
    return start_of_student(str(init), load_trained(init), read_trained_sha256(init))


def _require_same_tower(student: Student, trained: Student, start: Path) -> None:
    ours = {name: list(value.shape) for name, value in student.state_dict().items()}
    theirs = {name: list(value.shape) for name, value in trained.state_dict().items()}
    if not student.vision_cfg.get("timm_model_name"):
        ours["quick_gelu"], theirs["quick_gelu"] = ([int(of.description.quick_gelu)] for of in (student, trained))
    found = differences({"tensors": ours}, {"tensors": theirs})
    if student.specification != trained.specification:
        found += differences(student.preprocess.to_json(), trained.preprocess.to_json())
    if found:
        shown = "; ".join(f"{field}: {mine} here, {other} there" for field, mine, other in found[:_SHOWN])
        raise MismatchError(
            f"student {student.specification} cannot start from {start}, which trained {trained.specification} "
            f"({len(found)} differences: {shown}): name the same --student, or leave it out"
        )


def _quick_gelu_of(teacher: dict[str, Json]) -> bool | None:
    """Returns the activation flag that an open_clip model with this teacher's text tower must have; None if free."""
    activation = teacher.get("activation")
    if teacher.get("kind") != "open_clip" or not isinstance(activation, dict):
        return None
    return any("QuickGELU" in names for names in activation.values())


def _neighbours_of(
    config: DistillConfig, cache: Cache, images: CachedArray, texts: CachedArray
) -> NeighboursReader | None:
    if config.negatives == "random":
        return None
    name = config.negatives.removeprefix("mined:")
    neighbours = NeighboursReader(cache, name)
    ends = (neighbours.recipe.from_, neighbours.recipe.to)
    if [(end.modality, end.array) for end in ends] != [("image", images.name), ("text", texts.name)]:
        shown = " to ".join(f"{end.modality} {end.array}" for end in ends)
        raise MismatchError(
            f"neighbours {name!r} were mined from {shown}, this run needs image {images.name} to text {texts.name}: "
            "mine those, or use negatives random"
        )
    return neighbours


def _norm_batch_size_of(config: DistillConfig, student: Student, batch_size: int) -> int:
    """Returns how many rows share statistics or draws: all of a batch where that makes no difference.

    A run of format 1 that goes on keeps its micro batch, which was its norm batch.
    """
    if student.rows_are_independent:
        return batch_size
    of_format_1 = None if config.fresh else micro_batch_of_format_1(RunFolder(config.out.absolute()))
    return min(config.norm_batch_size or of_format_1 or LARGEST_DEFAULT_NORM_BATCH, batch_size)


def _precision_of(config: DistillConfig, device: torch.device) -> str:
    """Returns the precision that is asked for, else that of a run that goes on, wherever it was begun."""
    if config.precision != "auto":
        return config.precision
    folder = RunFolder(config.out.absolute())
    if folder.run_json.exists() and not config.fresh:
        return str(read_record(folder).asked["precision"])
    return "bfloat16" if device.type == "cuda" else "float32"
