"""The `open_clip:` teacher: any dual encoder that open_clip builds, with weights that are certainly its own.

Shape letters: B rows of a batch, C channels, H height, W width, D width of a feature, L context length.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError, UsageError
from cache_schema.json_file import Json
from stages.device import full_float32, torch_device
from stages.images.preprocess import Preprocess
from stages.teachers.activations import activations_in
from stages.teachers.base import PRECISIONS, Teacher, states_of
from stages.teachers.checkpoint_weights import load_all, logit_scale_and_bias, read_tensors
from stages.teachers.open_clip_sources import ModelSource, find_source
from stages.teachers.open_clip_tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

_OPEN_CLIP_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_NOT_ARCHITECTURE = {"vision_cfg": ("timm_model_pretrained",), "text_cfg": ("hf_model_pretrained",)}


class OpenClipTeacher(Teacher):
    """A loaded open_clip model; made by `load`."""

    def __init__(self, source: ModelSource, *, device: "torch.device", precision: str, image_side: bool) -> None:
        import torch

        self._device = device
        # Source: open_clip 3.3.0, model.get_input_dtype.
        self._input_dtype = getattr(torch, precision)
        tensors = read_tensors(source.weights)
        self._model = _build(source, precision)
        load_all(self._model, tensors, source.weights)
        self._tokenizer = Tokenizer(source)
        config = [source.config] if source.config else []
        self.specification = source.specification
        self.files = states_of([source.weights, *config, *self._tokenizer.files])
        self.dim = int(source.model_cfg["embed_dim"])
        self.logit_scale, self.logit_bias = logit_scale_and_bias(tensors, source.weights)
        self.preprocess = _preprocess_of(self._model.visual.preprocess_cfg, source)
        self.tokenizer = self._tokenizer.description
        self.context_length = self._tokenizer.context_length
        self.identity = {
            "kind": "open_clip",
            "architecture": _architecture_of(source.model_cfg),
            "files": {"weights": source.weights_sha256},
            "activation": _checked_activations(self._model, source),
            "num_parameters": sum(parameter.numel() for parameter in self._model.parameters()),
        }
        if not image_side:
            self._model.visual = None
        self._model.eval().requires_grad_(False).to(device)

    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._model.visual is None:
            raise UsageError(f"{self.specification} was loaded as a text tower: load the whole teacher for images")
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(pixels_BCHW, np.float32))
        with torch.inference_mode(), full_float32():
            features = self._model.encode_image(pixels.to(self._device, self._input_dtype))
        return self._checked(features, len(pixels_BCHW))

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        tokens = torch.from_numpy(self._tokenizer.token_ids(texts))
        with torch.inference_mode(), full_float32():
            features = self._model.encode_text(tokens.to(self._device))
        return self._checked(features, len(texts))

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self._tokenizer.count_tokens(texts)

    def token_ids(self, texts: list[str]) -> NDArray[np.int64]:
        return self._tokenizer.token_ids(texts)

    def text_tensors(self) -> "dict[str, torch.Tensor]":
        """Returns everything but the image tower under open_clip's own names: text tower, logit scale and bias."""
        return {name: value for name, value in self._model.state_dict().items() if not name.startswith("visual.")}

    def _checked(self, features: Any, num_rows: int) -> NDArray[np.float32]:
        if tuple(getattr(features, "shape", ())) != (num_rows, self.dim):
            raise RefusedError(
                f"{self.specification} gave features of shape {tuple(getattr(features, 'shape', ()))} instead of "
                f"({num_rows}, {self.dim}): its configuration returns something other than one feature per input"
            )
        return features.float().cpu().numpy()


def load(rest: str, *, device: str, precision: str, base_folder: Path, image_side: bool = True) -> OpenClipTeacher:
    """Returns the teacher that `rest`, a specification without its `open_clip:`, names.

    The whole model is checked before its image side is dropped, so a text tower has the identity of its teacher.

    Raises:
        UsageError: unknown model, tag, file, device or precision.
        EnvironmentProblem: the device, a package or the hub is not there.
        RefusedError: the weights are not completely and exactly those of the architecture.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    on_device = torch_device(device)
    source = find_source(rest, base_folder=base_folder)
    return OpenClipTeacher(source, device=on_device, precision=precision, image_side=image_side)


def _build(source: ModelSource, precision: str) -> Any:
    """Returns the model with random weights, on the CPU, with the activation and preprocessing of its checkpoint."""
    import open_clip
    import torch

    try:
        with torch.random.fork_rng(devices=[]), _without_warnings_about_random_weights():
            return open_clip.create_model(
                source.model_name,
                load_weights=False,
                precision=_OPEN_CLIP_PRECISIONS[precision],
                force_quick_gelu=source.quick_gelu,
                force_preprocess_cfg=source.preprocess,
                pretrained_text=False,
            )
    except (RuntimeError, ImportError, OSError) as error:
        if "hf_model_name" in source.model_cfg["text_cfg"]:
            raise EnvironmentProblem(
                f"cannot build the text tower of {source.specification} ({_one_line(error)}), one of transformers: "
                "pip install transformers, and connect to the hub for its configuration"
            ) from error
        raise _not_buildable(source, error) from error
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, ArithmeticError) as error:
        raise _not_buildable(source, error) from error


def _not_buildable(source: ModelSource, error: BaseException) -> RefusedError:
    return RefusedError(
        f"open_clip cannot build the architecture of {source.specification} ({type(error).__name__}: "
        f"{_one_line(error)}): correct its model_cfg, or upgrade open_clip"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def _without_warnings_about_random_weights() -> Iterator[None]:
    # open_clip 3.3.0 warns on the root logger that no weights were loaded; they are, right afterwards and completely.
    def keep(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def _preprocess_of(values: dict[str, Any], source: ModelSource) -> Preprocess:
    size = values["size"]
    try:
        return Preprocess.from_json(
            {
                "size": [size, size] if isinstance(size, int) else list(size),
                "mean": list(values["mean"]),
                "std": list(values["std"]),
                # open_clip resizes with bicubic where a configuration says random, which is about training.
                "interpolation": "bicubic" if values["interpolation"] == "random" else values["interpolation"],
                "resize_mode": values["resize_mode"],
                "fill_color": values["fill_color"],
            }
        )
    except (TypeError, ValueError) as error:
        raise RefusedError(
            f"{source.specification} has a preprocess_cfg that we cannot follow ({_one_line(error)}): correct it"
        ) from error


def _architecture_of(model_cfg: dict[str, Any]) -> dict[str, Json]:
    return {
        key: {name: item for name, item in value.items() if name not in _NOT_ARCHITECTURE.get(key, ())}
        if isinstance(value, dict)
        else value
        for key, value in model_cfg.items()
        # Told by the activation, which is looked up in the built model.
        if key != "quick_gelu"
    }


def _checked_activations(model: Any, source: ModelSource) -> dict[str, Json]:
    """Returns the activations found in the built towers; refuses those that the checkpoint was not made for."""
    image = activations_in(model.visual)
    text = sorted(
        {found for name, tower in model.named_children() if name != "visual" for found in activations_in(tower)}
    )
    wanted = "QuickGELU" if source.quick_gelu else "GELU"
    # timm and transformers towers bring their own activations, whatever quick_gelu says; so do ResNets.
    own = "timm_model_name" in source.model_cfg["vision_cfg"] or isinstance(
        source.model_cfg["vision_cfg"].get("layers"), list
    )
    towers = {"image": [] if own else image, "text": [] if "hf_model_name" in source.model_cfg["text_cfg"] else text}
    for tower, found in towers.items():
        if any(name.partition("(")[0] != wanted for name in found):
            raise MismatchError(
                f"the {tower} tower of {source.specification} was built with {', '.join(found)}, its checkpoint was "
                f"made for {wanted}: the features would be wrong; correct quick_gelu in its configuration"
            )
    return {"image": image, "text": text}
