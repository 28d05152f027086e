"""Tiny architectures and published tags that open_clip itself knows for the length of a test."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.corpora.tiny_open_clip import tiny_config


@pytest.fixture(scope="package")
def tiny_architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes "tiny-clip" (GELU) and "tiny-clip-quickgelu" names of architectures."""
    import open_clip
    from open_clip import factory

    folder = tmp_path_factory.mktemp("architectures")
    for name, quick_gelu in (("tiny-clip", False), ("tiny-clip-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps(tiny_config(quick_gelu=quick_gelu)["model_cfg"]))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in ("tiny-clip", "tiny-clip-quickgelu"):
        del factory._MODEL_CONFIGS[name]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tiny_architectures: None) -> Callable[..., None]:
    """Returns publish(model, tag, **values): open_clip then lists `tag` among the weights of `model`."""
    from open_clip import pretrained

    def add(model: str, tag: str, **values: Any) -> None:
        known = pretrained._PRETRAINED.get(model, {})
        monkeypatch.setitem(pretrained._PRETRAINED, model, {**known, tag: {"url": "", "hf_hub": "", **values}})

    return add
