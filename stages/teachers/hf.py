"""The `hf:` teacher: a dual encoder of transformers (CLIP, SigLIP, ALIGN …), whole, from safetensors, without its code.

`hf:ORG/NAME` and `hf:ORG/NAME@REVISION` are repositories of the hub, `hf:PATH` a local directory, which is read without
asking anybody.

Shape letters: B rows of a batch, C channels, H height, W width, D width of a feature, L context length.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError, UsageError
from stages.device import full_float32, torch_device
from stages.teachers.activations import activations_in
from stages.teachers.base import PRECISIONS, Teacher, states_of
from stages.teachers.hf_preprocess import preprocess_of
from stages.teachers.hf_source import CONFIG_NAME, HfSource, find_source
from stages.teachers.hf_tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

_NOT_ARCHITECTURE = {
    *("transformers_version", "_name_or_path", "_commit_hash", "architectures", "auto_map", "dtype", "torch_dtype"),
}
_SHOWN = 10


class HfTeacher(Teacher):
    """A loaded model of transformers; made by `load`."""

    def __init__(self, source: HfSource, *, device: "torch.device", precision: str, image_side: bool) -> None:
        import torch

        self._device = device
        self._dtype = getattr(torch, precision)
        self._image_side = image_side
        self.specification = source.specification
        self.files = states_of(source.files)
        self._model = _loaded(source)
        self.preprocess = preprocess_of(source)
        self._tokenizer = Tokenizer(source)
        self.tokenizer = self._tokenizer.description
        self.context_length = self._tokenizer.context_length
        self.logit_scale, self.logit_bias = _logit_scale_and_bias(self._model, source)
        self.identity = {
            "kind": "hf",
            "architecture": _architecture_of(source.config),
            "files": source.weights_sha256,
            "activation": {
                "image": activations_in(self._model.vision_model),
                "text": activations_in(self._model.text_model),
            },
            "num_parameters": sum(parameter.numel() for parameter in self._model.parameters()),
        }
        if not image_side:
            self._model.vision_model = None
        self._model.eval().requires_grad_(False).to(device, self._dtype)
        self.dim = self._text_features([""]).shape[1]

    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._image_side:
            raise UsageError(f"{self.specification} was loaded as a text tower: load the whole teacher for images")
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(pixels_BCHW, np.float32))
        with torch.inference_mode(), full_float32():
            found = self._model.get_image_features(pixel_values=pixels.to(self._device, self._dtype))
        return self._checked(found, len(pixels_BCHW))

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return self._checked(self._text_features(texts), len(texts))

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self._tokenizer.count_tokens(texts)

    def token_ids(self, texts: list[str]) -> NDArray[np.int64]:
        return self._tokenizer.token_ids(texts)

    def _text_features(self, texts: list[str]) -> Any:
        import torch

        tensors = {name: value.to(self._device) for name, value in self._tokenizer.tensors(texts).items()}
        with torch.inference_mode(), full_float32():
            return self._model.get_text_features(**tensors).pooler_output

    def _checked(self, found: Any, num_rows: int) -> NDArray[np.float32]:
        features = getattr(found, "pooler_output", found)
        if tuple(getattr(features, "shape", ())) != (num_rows, self.dim):
            raise RefusedError(
                f"{self.specification} gave features of shape {tuple(getattr(features, 'shape', ()))} instead of "
                f"({num_rows}, {self.dim}): its towers do not lead into one space; correct its {CONFIG_NAME}"
            )
        return features.float().cpu().numpy()


def load(rest: str, *, device: str, precision: str, base_folder: Path, image_side: bool = True) -> HfTeacher:
    """Returns the teacher that `rest`, a specification without its `hf:`, names.

    The whole model is checked before its image side is dropped, so a text tower has the identity of its teacher.

    Raises:
        UsageError: unknown model, family, device or precision.
        EnvironmentProblem: the device, a package or the hub is not there.
        RefusedError: the weights are not completely and exactly those of the architecture, or the preprocessing or
            tokenizer cannot be followed.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    on_device = torch_device(device)
    if importlib.util.find_spec("transformers") is None:
        raise EnvironmentProblem(f"teacher hf:{rest} needs transformers, which is not installed: pip install '.[hf]'")
    source = find_source(rest, base_folder=base_folder)
    with _quiet():
        return HfTeacher(source, device=on_device, precision=precision, image_side=image_side)


def _loaded(source: HfSource) -> Any:
    """Returns the model in float32 on the CPU with every weight from the files, or refuses."""
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    _refuse_other_kinds_of_numbers(source)
    model_class = getattr(transformers, source.family.model)
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = model_class.from_pretrained(
                str(source.folder),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except SafetensorError as error:
        raise _damaged(source, error) from error
    except (
        *(StrictDataclassError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
        *(AssertionError, ArithmeticError, ImportError),
    ) as error:
        raise RefusedError(
            f"transformers cannot build {source.specification} ({type(error).__name__}: {_one_line(error)}): correct "
            f"its {CONFIG_NAME}, or upgrade transformers"
        ) from error
    _refuse_partly_loaded(source, model, info)
    spoilt = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if spoilt:
        raise RefusedError(
            f"{source.specification} is spoilt: {_listed('tensors with NaN or infinity', spoilt)}: get a good copy"
        )
    return model


def _refuse_partly_loaded(source: HfSource, model: Any, info: dict[str, Any]) -> None:
    missing = [*info["missing_keys"], *(model._keys_to_ignore_on_load_missing or ())]
    # A table of 0, 1, 2, … that older versions of transformers saved.
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith("position_ids")]
    mismatched = [str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"]]
    errors = info.get("error_msgs") or []
    if missing or unexpected or mismatched or errors:
        raise MismatchError(
            f"the weights in {source.folder} do not fit its {CONFIG_NAME}: {_listed('missing', missing)}, "
            f"{_listed('unexpected', unexpected)}, {_listed('of other shapes', mismatched)}"
            f"{''.join(f', {message}' for message in errors)}: part of the model would be random; get the "
            f"{CONFIG_NAME} that the weights were made with"
        )


def _refuse_other_kinds_of_numbers(source: HfSource) -> None:
    from safetensors import SafetensorError, safe_open

    for path in source.weights:
        try:
            with safe_open(path, framework="np") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _damaged(source, error) from error
        others = [f"{name} {kind}" for name, kind in kinds.items() if kind not in ("F64", "F32", "F16", "BF16")]
        others = [name for name in others if "position_ids" not in name and "num_batches_tracked" not in name]
        if others:
            raise RefusedError(
                f"{path} has {_listed('tensors that are no floating point numbers', others)}: quantised weights are "
                "not used; save the model in float32, bfloat16 or float16"
            )


def _damaged(source: HfSource, error: BaseException) -> RefusedError:
    names = ", ".join(path.name for path in source.weights)
    return RefusedError(f"{source.folder} has {names} truncated or damaged ({_one_line(error)}): get a good copy")


def _logit_scale_and_bias(model: Any, source: HfSource) -> tuple[float, float | None]:
    family = source.family
    stored = float(getattr(model, family.scale).detach().double().reshape(-1)[0])
    scale = (1 / stored if stored else 0.0) if family.scale_is_temperature else float(np.exp(stored))
    if not 0 < scale < 1e6:
        raise RefusedError(f"{source.specification} has a logit scale of {scale}: get a good copy of the checkpoint")
    return scale, float(model.logit_bias.detach().double().reshape(-1)[0]) if family.has_bias else None


def _architecture_of(value: Any) -> Any:
    """Returns a configuration without what tells nothing of the features."""
    if isinstance(value, dict):
        return {name: _architecture_of(item) for name, item in value.items() if name not in _NOT_ARCHITECTURE}
    return value


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}" + (f" ({', '.join(sorted(names)[:_SHOWN])}{more})" if names else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' bars and reports off the terminal: what they tell is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
