"""What decides a fingerprint: fields of the recipe, and options of an extract; and what must not.

The tests run over the fields of both classes, so a new field has to be entered here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_schema.recipe import Recipe
from cache_schema.summary import summary_of_arrays
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from tests.corpora.pictures import encoded, noise
from tests.corpora.tiny_open_clip import make_tiny_open_clip

STUB = "python:tests.corpora.stub_teacher:make?dim=16"

RECIPE = Recipe(
    modality="image",
    teacher={"name": "imaginary", "files": {}},
    preprocess={"size": [32, 32]},
    dim=16,
    logit_scale=100.0,
    logit_bias=None,
    precision="float32",
)
IDENTITY = {
    "modality": "text",
    "teacher": {"name": "imaginary", "files": {"weights": "0" * 64}},
    "preprocess": {"size": [32, 33]},
    "dim": 17,
    "logit_scale": 99.0,
    "logit_bias": 0.0,
    "precision": "bfloat16",
    "decoding": {"orientation": "ignored"},
    "view": 1,
    "dtype": "float32",
}
BESIDE_IT = {
    "specification": "python:elsewhere:make",
    "files": {"/weights": {"size_bytes": 1, "mtime_ns": 2}},
    "tools": {"torch": "3"},
    "probes_sha256": "0" * 64,
}


def test_every_field_of_a_recipe_is_either_in_its_fingerprint_or_beside_it() -> None:
    assert sorted([*IDENTITY, *BESIDE_IT]) == sorted(each.name for each in fields(Recipe))


@pytest.mark.parametrize("name", [each.name for each in fields(Recipe) if each.name not in BESIDE_IT])
def test_a_field_of_the_identity_changes_the_fingerprint(name: str) -> None:
    assert name in IDENTITY, f"enter {name} in IDENTITY or BESIDE_IT"
    assert replace(RECIPE, **{name: IDENTITY[name]}).fingerprint != RECIPE.fingerprint


@pytest.mark.parametrize("name", BESIDE_IT)
def test_a_field_beside_the_identity_leaves_the_fingerprint(name: str) -> None:
    assert replace(RECIPE, **{name: BESIDE_IT[name]}).fingerprint == RECIPE.fingerprint


class Corpus:
    """Thirteen pictures, eleven sentences and a tiny teacher of open_clip, and what extracts make of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, first in (("pictures", 0), ("others", 1)):
            (folder / name).mkdir()
            for number in range(first, first + 13):
                (folder / name / f"{number:02d}.png").write_bytes(encoded(noise(40 + number, 52, number), "PNG"))
            (folder / f"{name}.txt").write_text("".join(f"sentence {number}\n" for number in range(first, first + 11)))
        self.open_clip = f"open_clip:local-dir:{make_tiny_open_clip(folder / 'open_clip')}"
        self._made: dict[str, dict[str, tuple[str, str]]] = {}

    def config(self) -> ExtractConfig:
        return ExtractConfig(
            cache=self.folder / "cache",
            images=(str(self.folder / "pictures"),),
            texts=(str(self.folder / "pictures.txt"),),
            teacher=STUB,
            batch_size=4,
            part_rows=8,
            num_threads=1,
            decode_workers=0,
            views=2,
            view_seed=0,
            index=False,
        )

    def extract(self, config: ExtractConfig) -> dict[str, tuple[str, str]]:
        """Returns the fingerprint and the digest of every array that `config` makes, in a new cache of its own."""
        if repr(config) not in self._made:
            cache = config.cache.with_name(f"{config.cache.name} {len(self._made)}")
            with open_job(replace(config, cache=cache)) as job:
                with job.make_worker() as worker:
                    for task in job.tasks:
                        worker(task)
                found = summary_of_arrays(job.finish())
            self._made[repr(config)] = {name: (one["fingerprint"], one["digest"]) for name, one in found.items()}
        return self._made[repr(config)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@dataclass(frozen=True)
class Trial:
    """Another value of an option, and what else is asked for with and without it; functions get the corpus."""

    other: Any
    given: Mapping[str, Any] = field(default_factory=dict)

    def extracts(self, name: str, corpus: Corpus) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
        """Returns what is made without and with the other value."""

        def of_corpus(value: Any) -> Any:
            return value(corpus) if callable(value) else value

        one = replace(corpus.config(), **{key: of_corpus(value) for key, value in self.given.items()})
        return corpus.extract(one), corpus.extract(replace(one, **{name: of_corpus(self.other)}))


Of = Callable[[Corpus], Any]
OF_OPEN_CLIP: Mapping[str, Of] = {"teacher": lambda corpus: corpus.open_clip}

CHANGES_FINGERPRINTS = {
    "teacher": Trial(f"{STUB}&version=2&seed=1"),
    "precision": Trial("bfloat16", given=OF_OPEN_CLIP),
    "views": Trial(3),
    "view_seed": Trial(1),
    "store_pixels": Trial(24),
}
CHANGES_DIGESTS = {
    "images": Trial(lambda corpus: (str(corpus.folder / "others"),)),
    "texts": Trial(lambda corpus: (str(corpus.folder / "others.txt"),)),
}
RUNNING = {
    "cache": Trial(lambda corpus: corpus.folder / "elsewhere"),
    "add_teacher": Trial(True),
    "batch_size": Trial(3),
    "part_rows": Trial(16),
    "device": Trial("cuda", given={**OF_OPEN_CLIP, "device": "cpu", "precision": "float32"}),
    "num_threads": Trial(2),
    "decode_workers": Trial(2),
    "index": Trial(True),
    "index_device": Trial("cuda", given={"index": True}),
    "allow_mixed_numerics": Trial(True),
    "max_bad_fraction": Trial(0.5),
    "accept_new": Trial(True),
    "allow_useless_sources": Trial(True),
}
OF_A_CACHE_WITH_BAD_ROWS = ["retry_bad"]
"""See `test_retry_bad`: refused where no row has the status."""
ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_every_option_is_of_the_recipe_or_of_the_data_or_of_running() -> None:
    entered = sorted([*CHANGES_FINGERPRINTS, *CHANGES_DIGESTS, *RUNNING, *OF_A_CACHE_WITH_BAD_ROWS])
    assert entered == sorted(each.name for each in fields(ExtractConfig))


@pytest.mark.parametrize("name", CHANGES_FINGERPRINTS)
def test_an_option_that_can_change_a_feature_changes_fingerprints(name: str, corpus: Corpus) -> None:
    one, other = CHANGES_FINGERPRINTS[name].extracts(name, corpus)
    assert {fingerprint for fingerprint, _ in one.values()} != {fingerprint for fingerprint, _ in other.values()}
    assert {digest for _, digest in one.values()} != {digest for _, digest in other.values()}


@pytest.mark.parametrize("name", CHANGES_DIGESTS)
def test_other_data_changes_digests_and_no_fingerprint(name: str, corpus: Corpus) -> None:
    modality = name.removesuffix("s")
    one, other = CHANGES_DIGESTS[name].extracts(name, corpus)
    assert one.keys() == other.keys()
    for array in one:
        assert one[array][0] == other[array][0]
        assert (one[array][1] != other[array][1]) == array.startswith(modality)


@pytest.mark.parametrize("name", [pytest.param(name, marks=ON_A_GPU if "device" in name else []) for name in RUNNING])
def test_an_option_of_running_changes_neither_fingerprints_nor_digests(name: str, corpus: Corpus) -> None:
    one, other = RUNNING[name].extracts(name, corpus)
    if name == "device":  # Another device rounds otherwise, so digests may differ.
        one, other = ({array: made[:1] for array, made in arrays.items()} for arrays in (one, other))
    assert one == other
