"""From what transformers' files say of pictures to our `Preprocess`: exactly, or refused with the name of the field.

The reference is the processor of transformers that computes with Pillow; its torchvision one rounds otherwise.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache_schema.errors import RefusedError, unknown_name
from stages.images.preprocess import Preprocess, normalise, prepare_pixels
from stages.teachers.hf_source import HfSource
from stages.teachers.probe_inputs import probe_images

_PROCESSORS = {name: f"{name}ImageProcessorPil" for name in ("CLIP", "ChineseCLIP", "Siglip", "EfficientNet", "ViT")}
_OF_FAMILY = {"siglip": "Siglip", "align": "EfficientNet", "chinese_clip": "ChineseCLIP"}
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers; box and Hamming have no counterpart."""
_FOLLOWED = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", "rescale_offset", "include_top"),
)
_WITHOUT_EFFECT = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "do_convert_rgb"),
    *("default_to_square", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    *("auto_map", "transformers_version", "backend"),
)
_TOLERANCE = 1e-5


def preprocess_of(source: HfSource) -> Preprocess:
    """Returns the preprocessing of `source`, after comparing the pixels of the probe pictures with transformers' own.

    Raises:
        RefusedError: a field has a value that `Preprocess` cannot follow exactly, or is unknown; or two files differ.
    """
    (where, preprocess), *others = [(path, _preprocess_of(source, path)) for path in source.preprocess]
    for path, other in others:
        if other != preprocess:
            raise RefusedError(
                f"{where} prepares pictures otherwise than {path.name} beside it ({preprocess} and {other}): "
                "transformers 4 reads the second one, transformers 5 the first; use hf:PATH with a copy of the folder "
                "that has only the one that the model was trained with"
            )
    return preprocess


def _preprocess_of(source: HfSource, where: Path) -> Preprocess:
    processor = _processor_of(source, where)
    for name, value in source.preprocess[where].items():
        if name not in _FOLLOWED + _WITHOUT_EFFECT and value not in (None, False):
            raise _cannot_follow(where, name, value)
    preprocess = _mapped(processor, where)
    size = (source.config.get("vision_config") or {}).get("image_size", preprocess.size[0])
    if source.family.fixed_size and preprocess.size != (size, size):
        raise RefusedError(
            f"{where} makes pictures of {preprocess.size}, the image tower of {source.specification} takes "
            f"({size}, {size}): correct size or crop_size"
        )
    _compare(processor, preprocess, where)
    return preprocess


def _processor_of(source: HfSource, where: Path) -> Any:
    import transformers

    values = source.preprocess[where]
    named = values.get("image_processor_type") or values.get("feature_extractor_type")
    kind = _OF_FAMILY.get(source.config["model_type"], "CLIP")
    if named is not None:
        for ending in ("Fast", "Pil"):
            named = str(named).removesuffix(ending)
        kind = named.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in _PROCESSORS:
        raise unknown_name(f"image_processor_type in {where}", kind, _PROCESSORS)
    try:
        return getattr(transformers, _PROCESSORS[kind]).from_dict(dict(values))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RefusedError(f"{where} is not one that transformers can follow ({error}): correct it") from error


def _mapped(processor: Any, where: object) -> Preprocess:
    for name in ("do_resize", "do_rescale"):
        if not getattr(processor, name, False):
            raise _cannot_follow(where, name, getattr(processor, name, None))
    resample = processor.resample
    if resample is None or int(resample) not in _INTERPOLATIONS:
        raise _cannot_follow(where, "resample", resample)
    resize_mode, target = _resize_of(processor, where)
    size = target
    if processor.do_center_crop:
        crop = processor.crop_size
        size = (crop.height or 0, crop.width or 0)
        if min(size) < 1 or size[0] > target[0] or size[1] > target[1]:
            raise _cannot_follow(where, "crop_size", f"{size} of {target}")
    elif resize_mode == "shortest":
        raise _cannot_follow(where, "do_center_crop", False)
    mean, std = _normalisation_of(processor, where)
    return Preprocess(
        size=size,
        mean=mean,
        std=std,
        interpolation=_INTERPOLATIONS[int(resample)],
        resize_mode=resize_mode,
        resize_to=None if size == target else target,
        crop_rounding="down" if resize_mode == "shortest" or size != target else "nearest",
    )


def _resize_of(processor: Any, where: object) -> tuple[str, tuple[int, int]]:
    size = processor.size
    others = (size.longest_edge, getattr(size, "max_height", None), getattr(size, "max_width", None))
    if not any(others) and size.shortest_edge and not size.height and not size.width:
        return "shortest", (int(size.shortest_edge), int(size.shortest_edge))
    if not any(others) and size.height and size.width and not size.shortest_edge:
        return "squash", (int(size.height), int(size.width))
    raise _cannot_follow(where, "size", size)


def _normalisation_of(processor: Any, where: object) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns mean and std of one normalisation that does the same as the steps of `processor`, one after the other."""
    scale = float(processor.rescale_factor) * 255
    if not 0 < scale < float("inf"):
        raise _cannot_follow(where, "rescale_factor", processor.rescale_factor)
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        mean, std = (_three(getattr(processor, name), name, where) for name in ("image_mean", "image_std"))
    if abs(scale - 1) > 1e-9 or offset:
        mean = [(value + offset) / scale for value in mean]
        std = [value / scale for value in std]
    if getattr(processor, "include_top", False):
        std = [value * more for value, more in zip(std, _three(processor.image_std, "image_std", where), strict=True)]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _three(value: Any, name: str, where: object) -> list[float]:
    values = [float(value)] * 3 if isinstance(value, int | float) else [float(item) for item in value or ()]
    if len(values) != 3:
        raise _cannot_follow(where, name, value)
    return values


def _compare(processor: Any, preprocess: Preprocess, where: object) -> None:
    pictures = [Image.fromarray(pixels) for pixels in probe_images()]
    theirs = np.stack(processor(pictures)["pixel_values"])
    ours = normalise(np.stack([prepare_pixels(picture, preprocess) for picture in pictures]), preprocess)
    if theirs.shape != ours.shape or not np.abs(theirs - ours).max() <= _TOLERANCE:
        by = f"up to {np.abs(theirs - ours).max():.2g}" if theirs.shape == ours.shape else f"{theirs.shape}"
        raise RefusedError(
            f"the pixels of {where} are not those of {type(processor).__name__} (they differ by {by}): "
            "use an open_clip or python: teacher"
        )


def _cannot_follow(where: object, name: str, value: object) -> RefusedError:
    return RefusedError(
        f"{where} has {name} {value!r}, which cannot be followed exactly: correct it, or write a python: teacher"
    )
