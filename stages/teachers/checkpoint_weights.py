"""The tensors of an open_clip checkpoint file, read without pickle and loaded completely or not at all."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from cache_schema.errors import MismatchError, RefusedError, UsageError

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_SHOWN = 10
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's own state dicts that are no weights; open_clip drops them too."""


def read_tensors(path: Path) -> "Tensors":
    """Returns the tensors of the checkpoint at `path`, on the CPU.

    Reads .safetensors, and torch zip files (.pt, .pth, .bin) with `weights_only=True`. A training checkpoint's
    "state_dict" and the "module." prefix of wrapped models are unpacked as open_clip does.

    Raises:
        UsageError: there is no such file, or its suffix is none that we read.
        RefusedError: the file is truncated, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint file {path}: check the path")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"cannot read {path} as weights: its suffix {path.suffix!r} is none of {', '.join(SUFFIXES)}")
    return _state_dict_in(_read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path), path)


def load_all(model: "torch.nn.Module", tensors: "Tensors", path: Path) -> None:
    """Copies `tensors` into `model`, after checking that they are the whole of it and nothing else.

    Unlike open_clip's own loading, nothing is resized or filled in: a positional table of another grid is refused.

    Raises:
        MismatchError: keys are missing or unexpected, or shapes or kinds of dtype differ; lists the first ten.
        RefusedError: a tensor holds NaN or an infinity; lists the first ten.
    """
    import torch

    tensors = _as_model_spells_them(model, tensors)
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in tensors]
    unexpected = [key for key in tensors if key not in wanted]
    if missing or unexpected:
        raise MismatchError(
            f"{path} does not fit the architecture: {_listed('missing', missing)}, "
            f"{_listed('unexpected', unexpected)}: loading it would leave random weights; "
            "name the architecture that the checkpoint was made for"
        )
    shapes = [
        f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype} for {tuple(value.shape)} {value.dtype}"
        for key, value in wanted.items()
        if tensors[key].shape != value.shape or tensors[key].is_floating_point() != value.is_floating_point()
    ]
    if shapes:
        raise MismatchError(
            f"{path} does not fit the architecture: {_listed('other shapes or dtypes', shapes)}: "
            "name the architecture that the checkpoint was made for"
        )
    spoilt = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if spoilt:
        raise RefusedError(f"{path} is spoilt: {_listed('tensors with NaN or infinity', spoilt)}: get a good copy")
    model.load_state_dict(tensors, strict=True)


def logit_scale_and_bias(tensors: "Tensors", path: Path) -> tuple[float, float | None]:
    """Returns the factor on cosines (the exponential of what is stored) and the bias, from the checkpoint itself.

    Raises:
        RefusedError: the checkpoint has no usable logit scale.
    """
    import torch

    if "logit_scale" not in tensors:
        raise RefusedError(f"{path} has no logit_scale: it is not the checkpoint of a dual encoder")
    scale = float(tensors["logit_scale"].to(torch.float64).reshape(-1)[0].exp())
    if not 0 < scale < 1e6:
        raise RefusedError(f"{path} has a logit scale of {scale}: get a good copy of the checkpoint")
    bias = tensors.get("logit_bias")
    return scale, None if bias is None else float(bias.to(torch.float64).reshape(-1)[0])


def _read_safetensors(path: Path) -> "Tensors":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise RefusedError(f"{path} is truncated or damaged ({error}): get a good copy of the file") from error


def _read_torch(path: Path) -> object:
    import torch
    from torch._weights_only_unpickler import UnpicklingError

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, *_READ_ERRORS) as error:
        reason = " ".join(str(error).split())[:160]
        raise RefusedError(
            f"{path} cannot be read as tensors only ({type(error).__name__}: {reason}): it is truncated, a TorchScript "
            "archive, or holds pickled objects, which are never run; save its state dict as .safetensors"
        ) from error


_READ_ERRORS = (
    *(OSError, EOFError, RuntimeError, MemoryError, ArithmeticError, struct.error),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)
"""What `torch.load` of torch 2.15 was seen to raise for damaged files."""


def _state_dict_in(content: object, path: Path) -> "Tensors":
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise RefusedError(f"{path} holds no state dict: save the model's state dict as .safetensors")
    tensors = {str(key): value for key, value in content.items() if key not in _OPENAI_EXTRAS}
    others = [key for key, value in tensors.items() if not _is_dense(value)]
    if others or not tensors:
        raise RefusedError(
            f"{path} is not a state dict: {_listed('entries that are no dense tensors', others)}: "
            "save the model's state dict as .safetensors"
        )
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _is_dense(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _as_model_spells_them(model: "torch.nn.Module", tensors: "Tensors") -> "Tensors":
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    # Source: open_clip 3.3.0, factory.load_checkpoint, without its resizing of positional tables.
    tensors = convert_state_dict(model, tensors)
    wanted = model.state_dict()
    if "positional_embedding" in tensors and "positional_embedding" not in wanted:
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        if name in tensors and name in wanted and tensors[name].numel() == wanted[name].numel():
            tensors = {**tensors, name: tensors[name].reshape(wanted[name].shape)}
    # transformers 4.31 stopped saving this table of 0, 1, 2, …
    positions = "text.transformer.embeddings.position_ids"
    return {key: value for key, value in tensors.items() if key != positions or key in wanted}


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:_SHOWN])}{more})" if names else "")
