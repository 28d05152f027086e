"""Extracts and imports that run in this process, their ordinary configurations, and what became of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_schema.cache import Cache
from cache_schema.layout import Modality
from cache_schema.summary import summary_of_arrays
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.imported.config import ImportConfig
from stages.imported.job import open_import
from tests.corpora.stub_teacher import STUB


def extract_config(cache: Path, images: Path | None = None, texts: Path | None = None, **fields: Any) -> ExtractConfig:
    """Returns a configuration for tests: the stub teacher, parts of 16 rows, one process, one thread and no index.

    Args:
        cache: its folder.
        images: a source of images; None takes no part.
        texts: likewise of sentences.
        fields: others of `ExtractConfig`, or other values.
    """
    sources = {name: (str(path),) for name, path in (("images", images), ("texts", texts)) if path is not None}
    usual = {"teacher": STUB, "part_rows": 16, "decode_workers": 0, "num_threads": 1, "index": False}
    return ExtractConfig(cache=cache, **{**sources, **usual, **fields})


def import_config(cache: Path, **fields: Any) -> ImportConfig:
    """Returns a configuration for tests: features of `clip`, parts of 4 rows, one process and no index."""
    usual = {"teacher_name": "clip", "part_rows": 4, "decode_workers": 0, "index": False}
    return ImportConfig(cache=cache, **{**usual, **fields})


def run_parts(job: Any, *, only: int | None = None) -> list[Any]:
    """Does the pending parts of an open extract or import, or the first `only` of them; returns their tasks."""
    tasks = list(job.tasks[:only])
    if tasks:
        with job.make_worker() as worker:
            for task in tasks:
                job.count_bad(task.modality, worker(task).num_bad)
    return tasks


def extract(config: ExtractConfig, *, only: int | None = None) -> dict[str, dict[str, Any]]:
    """Runs an extract in this process, or its first `only` pending parts; returns its summary."""
    with open_job(config) as job:
        run_parts(job, only=only)
        return summary_of_arrays(job.finish())


def import_features(config: ImportConfig, *, only: int | None = None) -> dict[str, dict[str, Any]]:
    """Runs an import in this process, or its first `only` pending parts; returns its summary."""
    with open_import(config) as job:
        run_parts(job, only=only)
        return summary_of_arrays(job.finish())


def extracted_cache(cache: Path, images: Path, texts: Path, **fields: Any) -> Cache:
    """Fills a new cache in this process and returns it; `fields` are those of `extract_config`."""
    extract(extract_config(cache, images, texts, **fields))
    return Cache.open(cache)


def digests(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the digest of every array in a summary, or in the `arrays` of what a command prints."""
    return {name: array["digest"] for name, array in summary.items()}


def digests_of(cache: Path) -> dict[str, str]:
    """Returns the digest of every array of a cache, as it is computed from what is on disk."""
    opened = Cache.open(cache)
    arrays = [opened.array(modality, name) for modality in opened.modalities for name in opened.arrays(modality)]
    return {f"{array.modality}/{array.name}": array.digest() for array in arrays}


def outcomes_in(cache: Path, modality: Modality = "image") -> dict[str, tuple[str, str]]:
    """Returns key -> (status, reason) of every row of the only array of `modality`, in the order of the rows."""
    array = Cache.open(cache).array(modality)
    return {key: (status, why) for part in sorted(array.committed) for _, key, status, why in array.outcome(part)}
