"""Memory of extract does not grow with the rows: coarse, at small sizes; benchmarks/memory.py measures it well."""

from pathlib import Path

from benchmarks.commands import run_pipeline
from benchmarks.memory import write_texts
from benchmarks.pictures import write_folder
from benchmarks.teachers import STUB
from tests.corpora.pictures import jpeg

ROOM_BYTES = 25_000_000
"""Far less than what ten times the rows would take if pixels, features or samples were kept."""


def peak_bytes(source: Path, modality: str, part_rows: int) -> int:
    options = ("--part-rows", part_rows, "--batch-size", 32, "--no-index")
    cache = source.with_name(f"cache-{source.name}")
    ran = run_pipeline(
        "extract", f"--{modality}s", source, "--teacher", STUB, "--cache", cache, *options, sample_memory=True
    )
    return ran.peak_bytes


def test_extract_of_ten_times_the_pictures_needs_no_more_memory(tmp_path: Path) -> None:
    # 1,200 pictures of 256 × 256 pixels are 236 MB decoded.
    picture = jpeg(256, 256)
    few, many = (write_folder(tmp_path / f"{count}", [picture] * count) for count in (120, 1200))
    assert peak_bytes(many, "image", 64) < peak_bytes(few, "image", 64) + ROOM_BYTES


def test_extract_of_ten_times_the_sentences_needs_no_more_memory(tmp_path: Path) -> None:
    few, many = (write_texts(tmp_path / f"{count}.txt", count) for count in (8_192, 81_920))
    assert peak_bytes(many, "text", 2048) < peak_bytes(few, "text", 2048) + ROOM_BYTES
