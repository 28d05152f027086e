"""Finds the folder of an hf teacher, a local directory or a repository of the hub, and checks what is in it.

A folder holds what `save_pretrained` of transformers writes: config.json, safetensors, the tokenizer's files, and how
pictures are prepared, in preprocessor_config.json or, since transformers 5, in processor_config.json.

No code that lies there is ever run, and nothing is unpickled.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_schema.errors import EnvironmentProblem, RefusedError, UsageError, unknown_name
from cache_schema.json_file import read_json
from stages.teachers.base import sha256_of_path
from stages.teachers.hub import cached_only_unless_it_answers

FORMS = "hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:PATH"
CONFIG_NAME = "config.json"
PREPROCESS_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)


_CHANGES_WEIGHTS = ("quantization_config", "adapter_config")
"""What transformers makes other weights by than those in the safetensors."""


@dataclass(frozen=True)
class Family:
    """The facts of a family of dual encoders that transformers does not tell in one way for all.

    Attributes:
        model: name of the class in transformers.
        scale: name of the factor on cosines in the checkpoint.
        scale_is_temperature: it divides instead of being exponentiated.
        has_bias: a `logit_bias` is added to the scaled cosines.
        context_length: tokens read of a sentence; None means the text tower's table of positions.
        attention_mask: the text tower is told which tokens are padding; SigLIP was trained without.
        fixed_size: the image tower takes pictures of one size, that of its configuration.
    """

    model: str
    scale: str = "logit_scale"
    scale_is_temperature: bool = False
    has_bias: bool = False
    context_length: int | None = None
    attention_mask: bool = True
    fixed_size: bool = True


FAMILIES: dict[str, Family] = {
    "clip": Family("CLIPModel"),
    "metaclip_2": Family("MetaClip2Model"),
    # Source: big_vision, models/proj/image_text/text_transformer.py: padding is attended to.
    "siglip": Family("SiglipModel", has_bias=True, attention_mask=False),
    # Source: transformers 5.23.0, AlignProcessor.text_kwargs.
    "align": Family("AlignModel", scale="temperature", scale_is_temperature=True, context_length=64, fixed_size=False),
    # Source: Chinese CLIP, cn_clip/clip/utils.py, tokenize(context_length=52).
    "chinese_clip": Family("ChineseCLIPModel", context_length=52),
}
"""`model_type` of config.json -> family."""


@dataclass(frozen=True)
class HfSource:
    """One folder, read as far as JSON goes.

    Attributes:
        specification: with an absolute path where it is one.
        folder: local.
        config: content of config.json.
        preprocess: file -> how it says that pictures are prepared; one or two, which must agree.
        family: the one that the configuration names as its model_type.
        weights: the safetensors files, one or several.
        weights_sha256: name -> SHA-256 of each.
        tokenizer_files: those present.
    """

    specification: str
    folder: Path
    config: dict[str, Any]
    preprocess: dict[Path, dict[str, Any]]
    family: Family
    weights: tuple[Path, ...]
    weights_sha256: dict[str, str]
    tokenizer_files: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """Returns every file that decides a feature."""
        named = [self.folder / name for name in (CONFIG_NAME, PREPROCESS_NAME, PROCESSOR_NAME, INDEX_NAME)]
        return [path for path in named if path.is_file()] + [*self.weights, *self.tokenizer_files]


def find_source(rest: str, *, base_folder: Path) -> HfSource:
    """Returns the source that `rest`, an hf specification without its `hf:`, names. A directory goes before the hub.

    Raises:
        UsageError: it names neither a directory nor a repository, or a repository or revision that does not exist.
        EnvironmentProblem: the hub cannot be reached.
        RefusedError: the folder is not what it must be.
    """
    if not rest:
        raise UsageError(f"teacher hf: names no model: use {FORMS}")
    folder = Path(os.path.abspath(base_folder / Path(rest).expanduser()))
    if folder.is_dir():
        return _read_folder(folder, f"hf:{folder}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", rest):
        raise UsageError(f"there is no directory {folder} for teacher hf:{rest}: check the path, or use {FORMS}")
    name, _, revision = rest.partition("@")
    return _read_folder(_downloaded(name, revision or None), f"hf:{rest}")


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    files = [CONFIG_NAME, PREPROCESS_NAME, PROCESSOR_NAME, INDEX_NAME, "*.safetensors", *TOKENIZER_NAMES]
    wanted = [*files, *(f"{name}.json" for name in _CHANGES_WEIGHTS)]
    try:
        with cached_only_unless_it_answers():
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(
            f"the hub has no repository {name}{f' with revision {revision}' if revision else ''} that may be read "
            f"({_one_line(error)}), and there is no such directory: check the name"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot download {name} ({_one_line(error)}): connect to the hub, or copy the repository here and use "
            "hf:PATH"
        ) from error


def _read_folder(folder: Path, specification: str) -> HfSource:
    config = _read_object(folder / CONFIG_NAME)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise unknown_name(f"model_type in {folder / CONFIG_NAME}", str(kind), FAMILIES)
    for name in _CHANGES_WEIGHTS:
        if config.get(name) or (folder / f"{name}.json").exists():
            raise RefusedError(
                f"{folder} has a {name}: only whole weights are used; merge or convert them and save the model again"
            )
    weights = _weights_in(folder)
    return HfSource(
        specification=specification,
        folder=folder,
        config=config,
        preprocess=_preprocess_in(folder),
        family=FAMILIES[str(kind)],
        weights=weights,
        weights_sha256={path.name: sha256_of_path(path) for path in weights},
        tokenizer_files=tuple(folder / name for name in TOKENIZER_NAMES if (folder / name).is_file()),
    )


def _preprocess_in(folder: Path) -> dict[Path, dict[str, Any]]:
    """Returns file -> how it says that pictures are prepared; raises `RefusedError` when none does.

    **Source:** transformers 5.23.0, `ImageProcessingMixin.get_image_processor_dict`, which takes the first one.
    """
    found: dict[Path, dict[str, Any]] = {}
    # Older folders have one that says nothing of pictures.
    whole = _read_object(folder / PROCESSOR_NAME) if (folder / PROCESSOR_NAME).is_file() else {}
    of_pictures = whole.get("image_processor")
    if of_pictures is not None and not isinstance(of_pictures, dict):
        raise RefusedError(
            f"{folder / PROCESSOR_NAME} has image_processor {of_pictures!r}, which is no JSON object: get a good copy"
        )
    if of_pictures is not None:
        found[folder / PROCESSOR_NAME] = of_pictures
    if not found or (folder / PREPROCESS_NAME).is_file():
        found[folder / PREPROCESS_NAME] = _read_object(folder / PREPROCESS_NAME)
    return found


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RefusedError(
            f"{path} is missing: a folder of transformers holds {CONFIG_NAME}, {WEIGHTS_NAME}, {PREPROCESS_NAME} or a "
            f"{PROCESSOR_NAME} with an image_processor, and the tokenizer's files; save the model and its processor "
            "with save_pretrained"
        )
    value = read_json(path)
    if not isinstance(value, dict):
        raise RefusedError(f"{path} is no JSON object: get a good copy")
    return value


def _weights_in(folder: Path) -> tuple[Path, ...]:
    if (folder / WEIGHTS_NAME).is_file():
        return (folder / WEIGHTS_NAME,)
    if not (folder / INDEX_NAME).is_file():
        pickled = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.h5", "*.msgpack") for path in folder.glob(pattern)
        )
        hint = (
            f"; {', '.join(pickled)} is not read: load it once with transformers and save it again" if pickled else ""
        )
        raise RefusedError(f"{folder} holds no {WEIGHTS_NAME}: the model would be random{hint}")
    names = set(_read_object(folder / INDEX_NAME).get("weight_map", {}).values())
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise RefusedError(f"{folder / INDEX_NAME} names {name!r}, which is no file beside it: get a good copy")
    if not names:
        raise RefusedError(f"{folder / INDEX_NAME} names no weights: the model would be random; get a good copy")
    return tuple(folder / name for name in sorted(names))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
