"""The tokenizer of an hf model, its description, and honest token counts."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import EnvironmentProblem, RefusedError
from cache_schema.json_file import Json, fingerprint_of
from cache_schema.sha256 import sha256_of
from stages.teachers.base import sha256_of_path
from stages.teachers.hf_source import HfSource

if TYPE_CHECKING:
    import torch

_SPELT_OUT = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


class Tokenizer:
    """The tokenizer of one hf text tower: sentences become its tensors, padded to its context length.

    Attributes:
        description: JSON for the recipe.
        context_length: columns of `token_ids`.

    Raises:
        EnvironmentProblem: the tokenizer needs a package that is not there.
        RefusedError: the folder lacks its tokenizer, or the tokenizer does not fit the text tower.
    """

    def __init__(self, source: HfSource) -> None:
        text_config = source.config.get("text_config") or {}
        self._tokenizer = _loaded(source)
        _refuse_no_words(source, self._tokenizer)
        self._family = source.family
        self.context_length = _context_length(source, self._tokenizer)
        self._with_mask = source.family.attention_mask
        vocab_size = int(text_config.get("vocab_size") or len(self._tokenizer))
        if len(self._tokenizer) > vocab_size:
            raise RefusedError(
                f"{source.specification} has a text tower of {vocab_size:,} tokens, its tokenizer knows "
                f"{len(self._tokenizer):,}: copy the tokenizer that the model was made with"
            )
        if self._tokenizer.pad_token_id is None:
            raise RefusedError(f"the tokenizer of {source.specification} has no pad_token: add it to its configuration")
        self._lower = _needs_lower_case(source, self._tokenizer)
        self.description: dict[str, Json] = {
            "name": type(self._tokenizer).__name__,
            "context_length": self.context_length,
            "cleaning": "lower" if self._lower else "its own",
            "vocabulary": _vocabulary_of(source, self._tokenizer),
            "options": {
                "padding": "max_length",
                "padding_side": self._tokenizer.padding_side,
                "truncation_side": self._tokenizer.truncation_side,
                "pad_token_id": self._tokenizer.pad_token_id,
                "do_lower_case": getattr(self._tokenizer, "do_lower_case", None),
                "attention_mask": self._with_mask,
            },
        }

    def tensors(self, texts: list[str]) -> "dict[str, torch.Tensor]":
        """Returns the arguments of `get_text_features`: input_ids_BL and, where the tower reads one, attention_mask."""
        import torch

        found = self._encoded(texts)
        names = ("input_ids", "attention_mask") if self._with_mask else ("input_ids",)
        return {name: torch.tensor(found[name], dtype=torch.int64) for name in names}

    def token_ids(self, texts: list[str]) -> NDArray[np.int64]:
        """Returns tokens_BL, int64, padded and cut to the context length."""
        return np.asarray(self._encoded(texts)["input_ids"], np.int64)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Returns the number of tokens of each sentence before cutting, special ones included."""
        found = self._tokenizer(self._cleaned(texts), truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def _encoded(self, texts: list[str]) -> Any:
        return self._tokenizer(
            self._cleaned(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=self._with_mask,
        )

    def _cleaned(self, texts: list[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lower else list(texts)


def _loaded(source: HfSource) -> Any:
    from transformers import AutoTokenizer

    if not source.tokenizer_files:
        raise RefusedError(f"{source.folder} holds no tokenizer: copy the tokenizer's files there")
    try:
        return AutoTokenizer.from_pretrained(str(source.folder), local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise EnvironmentProblem(
            f"the tokenizer of {source.specification} needs a package ({_one_line(error)}): pip install '.[hf]'"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise RefusedError(
            f"the tokenizer in {source.folder} cannot be loaded ({_one_line(error)}): get a good copy of its files"
        ) from error


def _refuse_no_words(source: HfSource, tokenizer: Any) -> None:
    # Without the files of its vocabulary, transformers 5 makes one of the special tokens and calls all else unknown.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise RefusedError(
            f"the {type(tokenizer).__name__} in {source.folder} knows {len(tokenizer)} special tokens and no word: its "
            f"vocabulary is missing beside {', '.join(path.name for path in source.tokenizer_files)}; copy all of the "
            "tokenizer's files there"
        )


def _context_length(source: HfSource, tokenizer: Any) -> int:
    positions = (source.config.get("text_config") or {}).get("max_position_embeddings")
    if positions is None:
        # transformers leaves out of config.json what is its own default.
        import transformers

        positions = getattr(transformers, source.family.model).config_class().text_config.max_position_embeddings
    return min(source.family.context_length or int(positions), int(positions), int(tokenizer.model_max_length))


def _needs_lower_case(source: HfSource, tokenizer: Any) -> bool:
    # SigLIP 2 was trained on lower-case sentences, its published tokenizers (Gemma's) keep the case.
    # Source: transformers 5.23.0, Siglip2Tokenizer.
    return source.config["model_type"] == "siglip" and tokenizer.tokenize("A") != tokenizer.tokenize("a")


def _vocabulary_of(source: HfSource, tokenizer: Any) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        fast.no_padding()
        fast.no_truncation()
        return sha256_of(fast.to_str().encode())
    spelt_out = [path for path in source.tokenizer_files if path.name in _SPELT_OUT]
    return sha256_of_path(spelt_out[0]) if spelt_out else fingerprint_of(tokenizer.get_vocab())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
