"""Program: as `killed_extracts`, with an import in place of the extract. FOLDER holds what `write_features` wrote."""

from pathlib import Path

from stages.imported.config import ImportConfig
from stages.imported.job import open_import
from tests.corpora.extracts import import_config, run_parts
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    vectors,
    write_feature_tsv,
    write_image_tsv,
    write_npy,
)
from tests.corpora.pictures import jpeg
from tests.faults import killed_extracts


def write_features(folder: Path) -> Path:
    """Writes pictures and features joined by key, some of them bad, and sentences with theirs; returns `folder`."""
    payloads = [jpeg(9, 8, number) for number in range(13)]
    payloads[4] = b""
    write_image_tsv(folder / "image.tsv", keys_of(13), payloads)
    write_feature_tsv(folder / "image.feat.tsv", keys_of(12)[::-1], vectors(12)[::-1])
    write_npy(folder / "text.npy", keys_of(20), sentences_of(20), vectors(20, seed=1))
    return folder


def config(folder: Path, cache: Path) -> ImportConfig:
    return import_config(
        cache,
        image_features=(str(folder / "image.feat.tsv"),),
        images=(str(folder / "image.tsv"),),
        text_features=(str(folder / "text.npy"),),
        part_rows=8,
    )


def run_import(settings: ImportConfig) -> None:
    """Runs an import to its end."""
    with open_import(settings) as job:
        run_parts(job)
        job.finish()


if __name__ == "__main__":
    killed_extracts.config = config  # type: ignore[assignment]
    killed_extracts.extract = run_import  # type: ignore[assignment]
    killed_extracts.main()
