"""The tokens of an open_clip model are those of open_clip's own tokenizer, and its counts are honest."""

from dataclasses import replace

import open_clip
import pytest

from cache_schema.errors import RefusedError
from stages.teachers.open_clip_sources import ModelSource, find_source
from stages.teachers.open_clip_tokenizer import Tokenizer
from tests.corpora.tiny_open_clip import make_tiny_open_clip

TEXTS = ["a photo of a cat", "", "A  CAT &amp; a dog", "東京の夜景 🚀", "word " * 100]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = make_tiny_open_clip(tmp_path_factory.mktemp("teacher"))
    return find_source(f"local-dir:{folder}", base_folder=folder)


def with_text(source: ModelSource, **text: object) -> ModelSource:
    return replace(source, model_cfg={**source.model_cfg, "text_cfg": {**source.model_cfg["text_cfg"], **text}})


def test_token_ids_are_those_of_open_clip(source: ModelSource) -> None:
    tokenizer, stock = Tokenizer(source), open_clip.SimpleTokenizer(context_length=77)
    found = tokenizer.token_ids(TEXTS)
    assert found.dtype == "int64" and found.shape == (5, 77) == (5, tokenizer.context_length)
    assert (found == stock(TEXTS).numpy()).all()


def test_counts_are_before_cutting_and_hold_start_and_end(source: ModelSource) -> None:
    stock = open_clip.SimpleTokenizer(context_length=1000)
    wanted = [int((row != 0).sum()) for row in stock(TEXTS)]
    assert Tokenizer(source).count_tokens(TEXTS) == wanted
    assert wanted[1] == 2 and wanted[4] == 102


def test_the_description_names_what_changes_tokens_and_holds_no_path(source: ModelSource) -> None:
    tokenizer = Tokenizer(source)
    described = tokenizer.description
    assert (described["name"], described["context_length"], described["cleaning"]) == ("SimpleTokenizer", 77, "lower")
    assert described["options"] == {"mode": ""} and len(str(described["vocabulary"])) == 64
    assert str(source.folder) not in str(described) and tokenizer.files == []


def test_a_text_tower_with_fewer_tokens_than_the_tokenizer_is_refused(source: ModelSource) -> None:
    with pytest.raises(RefusedError, match=r"has a text tower of 49,407 tokens, its tokenizer knows 49,408: name the"):
        Tokenizer(with_text(source, vocab_size=49407))


def test_a_directory_that_names_a_tokenizer_of_transformers_must_carry_it(source: ModelSource) -> None:
    with pytest.raises(
        RefusedError, match=r"names a transformers tokenizer \(org/name\) but carries none of tokenizer"
    ):
        Tokenizer(with_text(source, hf_tokenizer_name="org/name"))
