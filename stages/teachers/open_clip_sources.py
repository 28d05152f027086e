"""Finds architecture, weights, activation and preprocessing of an open_clip teacher.

Three forms: `NAME/TAG` (published weights, through open_clip's hub), `local-dir:PATH` (open_clip_config.json beside
weights) and `NAME@FILE[?like=TAG]` (a checkpoint file with the architecture that it was made for).
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError, UsageError, nearest, unknown_name
from cache_schema.json_file import Json, parse_json
from stages.teachers.base import sha256_of_path
from stages.teachers.hub import cached_only_unless_it_answers

FORMS = "open_clip:NAME/TAG, open_clip:local-dir:PATH or open_clip:NAME@FILE"
CONFIG_NAME = "open_clip_config.json"
PREPROCESS_KEYS = ("mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
_WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""The order in which open_clip 3.3.0 looks for weights in a directory."""


@dataclass(frozen=True)
class ModelSource:
    """Everything needed to build one open_clip model without asking anybody else.

    Attributes:
        specification: the form with absolute paths.
        model_name: for open_clip's `create_model` and `get_tokenizer`.
        model_cfg: open_clip's description of the architecture.
        weights: the checkpoint file.
        weights_sha256: of that file.
        quick_gelu: the activation that the checkpoint was trained with is QuickGELU.
        preprocess: values of open_clip's preprocess_cfg that go with the checkpoint; {} where open_clip's own stand.
        folder: the local directory, for tokenizer files, or None.
        config: the open_clip_config.json that was followed, or None.
    """

    specification: str
    model_name: str
    model_cfg: dict[str, Any]
    weights: Path
    weights_sha256: str
    quick_gelu: bool
    preprocess: dict[str, Json]
    folder: Path | None = None
    config: Path | None = None


def find_source(rest: str, *, base_folder: Path) -> ModelSource:
    """Returns the source that `rest`, an open_clip specification without its `open_clip:`, names.

    Raises:
        UsageError: it has none of the three forms, or names a model, tag or file that does not exist.
        EnvironmentProblem: published weights cannot be downloaded.
        RefusedError: a directory or file is not what it must be, or says that it was made for another activation.
    """
    if rest.startswith("hf-hub:"):
        raise UsageError(f"teacher open_clip:{rest} is not supported: download it and use open_clip:local-dir:PATH")
    if rest.startswith("local-dir:"):
        return _from_folder(rest.removeprefix("local-dir:"), base_folder)
    if "@" in rest:
        return _from_file(rest, base_folder)
    return _from_tag(rest)


def _from_tag(rest: str) -> ModelSource:
    from open_clip.pretrained import download_pretrained, list_pretrained_tags_by_model

    name, slash, tag = rest.rpartition("/")
    model_name, model_cfg = _known_model(name if slash else rest)
    tags = list_pretrained_tags_by_model(model_name)
    if not tag or not slash:
        raise UsageError(
            f"teacher open_clip:{rest} names no weights, so they would be random: use one of {FORMS}; "
            f"tags of {model_name}: {', '.join(tags) or 'none'}"
        )
    published = _known_tag(model_name, tag)
    try:
        from_hub = published.get("hf_hub") and "file" not in published
        with cached_only_unless_it_answers() if from_hub else contextlib.nullcontext():
            weights = Path(download_pretrained(published))
    except (OSError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot download the weights {tag!r} of {model_name} ({' '.join(str(error).split())[:200]}): connect to "
            f"the hub, or copy the checkpoint here and use open_clip:{model_name}@FILE?like={tag}"
        ) from error
    return ModelSource(
        specification=f"open_clip:{model_name}/{tag}",
        model_name=model_name,
        model_cfg=model_cfg,
        weights=weights,
        weights_sha256=sha256_of_path(weights),
        quick_gelu=_quick_gelu_of(published, model_cfg),
        preprocess=_preprocess_in(published),
    )


def _from_folder(text: str, base_folder: Path) -> ModelSource:
    if not text:
        raise UsageError("teacher open_clip:local-dir: names no directory: use open_clip:local-dir:PATH")
    folder = Path(os.path.abspath(base_folder / Path(text).expanduser()))
    if not folder.is_dir():
        raise UsageError(f"there is no directory {folder} for teacher open_clip:local-dir:{text}: check the path")
    config = _read_config(folder / CONFIG_NAME)
    weights = _weights_in(folder)
    sha256 = sha256_of_path(weights)
    quick_gelu = bool(config["model_cfg"].get("quick_gelu", False))
    _refuse_other_activation(weights, sha256, quick_gelu, f"{folder / CONFIG_NAME} says quick_gelu={quick_gelu}")
    return ModelSource(
        specification=f"open_clip:local-dir:{folder}",
        model_name=f"local-dir:{folder}",
        model_cfg=config["model_cfg"],
        weights=weights,
        weights_sha256=sha256,
        quick_gelu=quick_gelu,
        preprocess=_preprocess_in(config["preprocess_cfg"]),
        folder=folder,
        config=folder / CONFIG_NAME,
    )


def _from_file(rest: str, base_folder: Path) -> ModelSource:
    from open_clip.pretrained import get_pretrained_cfg

    name, _, text = rest.partition("@")
    text, option, like = text.partition("?like=")
    model_name, model_cfg = _known_model(name)
    if not text:
        raise UsageError(f"teacher open_clip:{rest} names no file: use open_clip:NAME@FILE")
    weights = Path(os.path.abspath(base_folder / Path(text).expanduser()))
    if not weights.is_file():
        raise UsageError(f"there is no checkpoint file {weights} for teacher open_clip:{rest}: check the path")
    sha256 = sha256_of_path(weights)
    published = _known_tag(model_name, like) if option else _published_as(sha256, model_name)
    beside = weights.parent / CONFIG_NAME
    config = beside if not published and beside.is_file() else None
    if published:
        quick_gelu, preprocess = _quick_gelu_of(published, model_cfg), _preprocess_in(published)
    else:
        quick_gelu = bool(model_cfg.get("quick_gelu", False))
        says = f"architecture {model_name} has quick_gelu={quick_gelu}"
        _refuse_other_activation(weights, sha256, quick_gelu, says)
        preprocess = (
            _preprocess_in(_read_config(config)["preprocess_cfg"])
            if config
            else _preprocess_that_all_tags_share(model_name, get_pretrained_cfg)
        )
    return ModelSource(
        specification=f"open_clip:{model_name}@{weights}{option}{like}",
        model_name=model_name,
        model_cfg=model_cfg,
        weights=weights,
        weights_sha256=sha256,
        quick_gelu=quick_gelu,
        preprocess=preprocess,
        config=config,
    )


def _known_model(name: str) -> tuple[str, dict[str, Any]]:
    import open_clip

    model_name = name.replace("/", "-")
    model_cfg = open_clip.get_model_config(model_name) if model_name else None
    if model_cfg is None:
        known = open_clip.list_models()
        raise UsageError(
            f"unknown open_clip model {name!r}{nearest(model_name, known)}: use one of {FORMS}, "
            f"where NAME is one of the {len(known)} that open_clip.list_models() returns"
        )
    return model_name, model_cfg


def _known_tag(model_name: str, tag: str) -> dict[str, Any]:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    published = get_pretrained_cfg(model_name, tag)
    if not published:
        raise unknown_name(f"tag of open_clip model {model_name}", tag, list_pretrained_tags_by_model(model_name))
    return dict(published)


def _quick_gelu_of(published: dict[str, Any], model_cfg: dict[str, Any]) -> bool:
    # A tag that says nothing was trained as its architecture is written (roberta-ViT-B-32).
    return bool(published.get("quick_gelu", model_cfg.get("quick_gelu", False)))


def _preprocess_in(values: dict[str, Any]) -> dict[str, Json]:
    return {key: values[key] for key in PREPROCESS_KEYS if values.get(key) is not None}


def _preprocess_that_all_tags_share(model_name: str, get_pretrained_cfg: Any) -> dict[str, Json]:
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(model_name)
    values = [_preprocess_in(get_pretrained_cfg(model_name, tag)) for tag in tags]
    if any(value != values[0] for value in values):
        raise MismatchError(
            f"the published weights of {model_name} were made with different preprocessing (mean, std or resize), and "
            f"the checkpoint file does not say with which: add ?like=TAG, one of {', '.join(tags)}"
        )
    return values[0] if values else {}


def _published_as(sha256: str, model_name: str) -> dict[str, Any] | None:
    """Returns what open_clip knows of the published file with this hash, preferring `model_name`; None if unknown."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    found = None
    for name, tag in list_pretrained():
        published = get_pretrained_cfg(name, tag)
        if any(sha256.startswith(part) for part in re.findall(r"[/-]([0-9a-f]{8,64})(?=[/.])", published["url"])):
            found = published if found is None or name == model_name else found
    return found


def _refuse_other_activation(weights: Path, sha256: str, quick_gelu: bool, says: str) -> None:
    published = _published_as(sha256, "")
    if published is not None:
        made_for, because = bool(published.get("quick_gelu", False)), f"it is the published {published['url']}"
    elif re.search(r"quick.?gelu|openai", weights.name, re.IGNORECASE):
        made_for, because = True, "its name says so"
    else:
        beside = weights.parent / CONFIG_NAME
        if not beside.is_file():
            return
        made_for, because = bool(_read_config(beside)["model_cfg"].get("quick_gelu", False)), f"{beside} says so"
    if made_for != quick_gelu:
        raise MismatchError(
            f"{weights} was made for {'QuickGELU' if made_for else 'GELU'} ({because}), but {says}: the features would "
            f"be wrong; use the {'-quickgelu' if made_for else 'plain'} architecture, or correct quick_gelu"
        )


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise RefusedError(f"{path} is missing: a local open_clip directory holds {CONFIG_NAME} and weights")
    config = parse_json(path.read_bytes(), path)
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    keys = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    if not isinstance(model_cfg, dict) or not all(isinstance(model_cfg.get(key), of) for key, of in keys.items()):
        raise RefusedError(f"{path} has no model_cfg with {', '.join(keys)}: it is no open_clip configuration")
    preprocess_cfg = config.get("preprocess_cfg", {})
    if not isinstance(preprocess_cfg, dict):
        raise RefusedError(f"{path} has a preprocess_cfg that is no object: it is no open_clip configuration")
    for key in preprocess_cfg:
        if key not in (*PREPROCESS_KEYS, "size"):
            raise RefusedError(
                f"{path} has {key!r} in its preprocess_cfg{nearest(key, PREPROCESS_KEYS)}, which open_clip would "
                "ignore: correct or remove it"
            )
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}


def _weights_in(folder: Path) -> Path:
    present = [folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()]
    others = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pth"))
    if not present and len(others) != 1:
        what = f"several files that could be weights ({', '.join(p.name for p in others)})" if others else "no weights"
        raise RefusedError(
            f"{folder} holds {what}: the model would be random or a guess; name one file {_WEIGHT_NAMES[0]}"
        )
    return present[0] if present else others[0]
