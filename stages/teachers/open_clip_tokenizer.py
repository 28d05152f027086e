"""The tokenizer of an open_clip model, its description, and honest token counts."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import EnvironmentProblem, RefusedError
from cache_schema.json_file import Json, fingerprint_of
from cache_schema.sha256 import sha256_of
from stages.teachers.open_clip_sources import ModelSource

_HF_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")


class Tokenizer:
    """The tokenizer of one open_clip model: sentences become its token ids.

    Attributes:
        description: JSON for the recipe: name, context_length, cleaning, vocabulary (SHA-256), options.
        context_length: columns of `token_ids`.
        files: tokenizer files of a local directory, for change detection.

    Raises:
        EnvironmentProblem: the tokenizer needs a package or a hub that is not there.
        RefusedError: a local directory lacks its tokenizer, or the tokenizer does not fit the text tower.
    """

    description: dict[str, Json]
    context_length: int
    files: list[Path]

    def __init__(self, source: ModelSource) -> None:
        text_cfg = source.model_cfg["text_cfg"]
        is_hf = bool(text_cfg.get("hf_tokenizer_name"))
        self.files = _local_files(source) if is_hf else []
        self._tokenizer = _hf_tokenizer(source) if is_hf else _clip_tokenizer(source)
        self._is_hf = is_hf
        self.context_length = int(self._tokenizer.context_length)
        options = dict(text_cfg.get("tokenizer_kwargs") or {})
        if getattr(self._tokenizer, "reduction_fn", None) is not None:
            raise RefusedError(
                f"{source.specification} drops tokens at random (reduction_mask={options.get('reduction_mask')!r}): "
                "its features cannot be repeated; remove reduction_mask from the configuration"
            )
        self.description = {
            "name": type(self._tokenizer).__name__,
            "context_length": self.context_length,
            "cleaning": options.pop("clean", "whitespace" if is_hf else "lower"),
            "vocabulary": _vocabulary_of(self._tokenizer, is_hf=is_hf),
            "options": {**options, "mode": text_cfg.get("tokenizer_mode") or ""},
        }

    def token_ids(self, texts: list[str]) -> NDArray[np.int64]:
        """Returns tokens_BL, int64, padded and cut to the context length."""
        return np.asarray(self._tokenizer(texts).numpy(), np.int64)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Returns the number of tokens of each sentence before cutting, special ones included."""
        if not self._is_hf:
            return [len(self._tokenizer.encode(text)) + 2 for text in texts]
        cleaned = [self._tokenizer.clean_fn(text) for text in texts]
        return [len(ids) for ids in self._tokenizer.tokenizer(cleaned, truncation=False).input_ids]


def _clip_tokenizer(source: ModelSource) -> Any:
    import open_clip

    tokenizer = open_clip.get_tokenizer(source.model_name)
    vocab_size = source.model_cfg["text_cfg"].get("vocab_size", 49408)
    if tokenizer.vocab_size > vocab_size:
        raise RefusedError(
            f"{source.specification} has a text tower of {vocab_size:,} tokens, its tokenizer knows "
            f"{tokenizer.vocab_size:,}: name the architecture that the checkpoint was made for"
        )
    return tokenizer


def _hf_tokenizer(source: ModelSource) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise EnvironmentProblem(
            f"{source.specification} has a tokenizer of transformers, which is not installed: pip install transformers"
        )
    import open_clip

    try:
        return open_clip.get_tokenizer(source.model_name)
    except (OSError, ValueError, ImportError) as error:
        raise EnvironmentProblem(
            f"cannot load the tokenizer of {source.specification} ({' '.join(str(error).split())[:200]}): connect to "
            "the hub, or use open_clip:local-dir:PATH with the tokenizer's files beside the weights"
        ) from error


def _local_files(source: ModelSource) -> list[Path]:
    if source.folder is None:
        return []
    files = [source.folder / name for name in _HF_FILES if (source.folder / name).is_file()]
    if not files:
        raise RefusedError(
            f"{source.folder} names a transformers tokenizer ({source.model_cfg['text_cfg']['hf_tokenizer_name']}) but "
            f"carries none of {', '.join(_HF_FILES)}: copy the tokenizer's files there"
        )
    return files


def _vocabulary_of(tokenizer: Any, *, is_hf: bool) -> str:
    if not is_hf:
        return fingerprint_of(tokenizer.encoder)
    fast = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
    return sha256_of(fast.to_str().encode()) if fast else fingerprint_of(tokenizer.tokenizer.get_vocab())
