"""From an upright RGB picture to the pixels a model sees, in NumPy and Pillow only.

H, W: height and width of the model's input; B: pictures in a batch; C: the three colours.

Source: open_clip 3.3.0, `transform.image_transform(is_train=False)`; on RGB pictures the pixels are equal, bit for bit.
With `resize_to` and `crop_rounding`, also transformers 5.23.0, `image_processing_backends.PilBackend`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cache_schema.errors import RefusedError, unknown_name
from stages.images.crops import Crop

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
RESIZE_MODES = ("shortest", "squash", "longest")
CROP_ROUNDINGS = ("nearest", "down")
_OFTEN_ABSENT = ("resize_to", "crop_rounding")


class CropShape(NamedTuple):
    """What decides the pixels of a crop: two models of one shape see the same ones.

    Attributes:
        size: (height, width) in pixels.
        interpolation: a name of `INTERPOLATIONS`.
    """

    size: tuple[int, int]
    interpolation: str


@dataclass(frozen=True)
class Preprocess:
    """The values that turn a picture into a model's input; taken from the model, never guessed.

    Attributes:
        size: (height, width) of the input in pixels.
        mean: per colour, in units of 0 to 1.
        std: per colour, in units of 0 to 1; 1/255 leaves colours of 0 to 255 to the model.
        interpolation: a name of `INTERPOLATIONS`.
        resize_mode: `shortest` (fit the shorter side, crop the centre), `squash` (ignore the aspect) or `longest`
            (fit the longer side, pad with `fill_color`).
        fill_color: grey level of the padding, 0 to 255.
        resize_to: (height, width) that the resize aims at, before the centre of `size` is cropped; None is `size`.
        crop_rounding: half a pixel left or above the crop goes to the `nearest` even one, or `down`.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    resize_to: tuple[int, int] | None = None
    crop_rounding: str = "nearest"

    @property
    def crop_shape(self) -> CropShape:
        """Returns what decides the pixels of a crop for this model."""
        return CropShape(self.size, self.interpolation)

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, INTERPOLATIONS)
        if self.resize_mode not in RESIZE_MODES:
            raise unknown_name("resize mode", self.resize_mode, RESIZE_MODES)
        if self.crop_rounding not in CROP_ROUNDINGS:
            raise unknown_name("crop rounding", self.crop_rounding, CROP_ROUNDINGS)
        for size in (self.size, self.target):
            if len(size) != 2 or min(size) < 1:
                raise RefusedError(f"preprocessing size {size} is not (height, width) in pixels, both 1 or more")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise RefusedError(
                f"preprocessing mean {self.mean}, std {self.std}: expected three values each, std above 0"
            )
        if not 0 <= min(self.mean) <= max(self.mean) <= 1 or not 1 / 256 <= min(self.std) <= max(self.std) <= 1:
            raise RefusedError(
                f"preprocessing mean {self.mean}, std {self.std} are on another scale than colours of 0 to 1, to which "
                "they are applied: divide those that are meant for 0 to 255 by 255"
            )

    @property
    def target(self) -> tuple[int, int]:
        """Returns the (height, width) that the resize aims at."""
        return self.resize_to or self.size

    def to_json(self) -> dict[str, Any]:
        """Returns the values as JSON types, all that differ from what they were before there was a choice.

        So the dict can enter a fingerprint, and fingerprints made before a field existed stay what they were.
        """
        value = {
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": self.fill_color,
        }
        if self.resize_to is not None:
            value["resize_to"] = list(self.resize_to)
        if self.crop_rounding != "nearest":
            value["crop_rounding"] = self.crop_rounding
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Preprocess":
        """Returns what `to_json` gave; raises `RefusedError` for missing or unknown fields."""
        fields = set(cls.__dataclass_fields__)
        missing, unknown = sorted(fields - set(value) - {*_OFTEN_ABSENT}), sorted(set(value) - fields)
        if missing or unknown:
            raise RefusedError(f"preprocessing record: missing fields {missing}, unknown fields {unknown}")
        resize_to = value.get("resize_to")
        return cls(
            size=_two(value["size"]),
            mean=_three(value["mean"]),
            std=_three(value["std"]),
            interpolation=value["interpolation"],
            resize_mode=value["resize_mode"],
            fill_color=int(value["fill_color"]),
            resize_to=None if resize_to is None else _two(resize_to),
            crop_rounding=value.get("crop_rounding", "nearest"),
        )


def resized_size(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """Returns (width, height) of a picture after the resize and before the crop, without resizing anything.

    A very long picture grows enormous here, so callers compare this with a limit first.
    """
    out_height, out_width = preprocess.target
    if preprocess.resize_mode == "squash":
        return out_width, out_height
    if preprocess.resize_mode == "shortest" and out_height == out_width:
        if width <= height:
            return out_width, int(out_width * height / width)
        return int(out_height * width / height), out_height
    ratios = (height / out_height, width / out_width)
    ratio = min(ratios) if preprocess.resize_mode == "shortest" else max(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def prepare_pixels(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Returns uint8 HWC pixels of an RGB picture, as open_clip's evaluation transform gives before `ToTensor`."""
    out_height, out_width = preprocess.size
    resample = INTERPOLATIONS[preprocess.interpolation]
    if preprocess.resize_mode == "shortest" and preprocess.target[0] != preprocess.target[1]:
        # open_clip 3.3.0 builds ResizeKeepRatio without its interpolation here, so it is always bicubic.
        resample = Image.Resampling.BICUBIC
    resized = image.resize(resized_size(*image.size, preprocess), resample)
    return np.asarray(_centre(resized, out_width, out_height, preprocess))


def crop_pixels(image: Image.Image, crop: Crop, shape: "CropShape | Preprocess") -> np.ndarray:
    """Returns uint8 HWC pixels of one crop of an RGB picture, stretched to the size of `shape`."""
    left, top, right, bottom = crop_box(crop, *image.size)
    out_height, out_width = shape.size
    part = image.crop((left, top, right, bottom)).resize((out_width, out_height), INTERPOLATIONS[shape.interpolation])
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part)


def crop_box(crop: Crop, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of a crop in whole pixels of a picture of this size, never empty."""
    box_width = min(width, max(1, round(crop.width * width)))
    box_height = min(height, max(1, round(crop.height * height)))
    left = min(round(crop.left * width), width - box_width)
    top = min(round(crop.top * height), height - box_height)
    return left, top, left + box_width, top + box_height


def normalise(pixels_BHWC: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Returns float32 BCHW from uint8 BHWC: (pixel / 255 − mean) / std, rounded as torchvision rounds it."""
    result_BCHW = np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2)).astype(np.float32)
    result_BCHW /= np.float32(255)
    result_BCHW -= np.array(preprocess.mean, dtype=np.float32)[:, None, None]
    result_BCHW /= np.array(preprocess.std, dtype=np.float32)[:, None, None]
    return result_BCHW


def _centre(image: Image.Image, out_width: int, out_height: int, preprocess: Preprocess) -> Image.Image:
    width, height = image.size
    if width < out_width or height < out_height:
        padded = Image.new("RGB", (max(width, out_width), max(height, out_height)), (preprocess.fill_color,) * 3)
        padded.paste(image, (max(0, out_width - width) // 2, max(0, out_height - height) // 2))
        image = padded
        width, height = image.size
    if preprocess.crop_rounding == "down":
        left, top = (width - out_width) // 2, (height - out_height) // 2
    else:
        left, top = round((width - out_width) / 2), round((height - out_height) / 2)
    return image.crop((left, top, left + out_width, top + out_height))


def _two(values: list[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
