"""Resident memory of `pipeline extract` at 1 and at 10 times the rows, with the same part rows.

    python -m benchmarks.memory [--modality image text] [--factor 10]

Each extract is a fresh process. Its peak is the largest sum of proportional set sizes (shared pages counted once) over
the process and its decode processes, sampled ten times a second. Without an index, which holds every vector by
nature. The claim: within 10 % (`peak_ratio` at most 1.1).
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.commands import print_table, run_pipeline
from benchmarks.pictures import payloads_of, write_folder
from benchmarks.teachers import STUB, composed

COLUMNS = ("modality", "rows", "peak_mb", "more_rows", "more_peak_mb", "peak_ratio", "decode_workers", "part_rows")


def write_texts(path: Path, num_rows: int) -> Path:
    """Writes that many different sentences, one per line."""
    with path.open("w") as file:
        file.writelines(f"a photo of number {row} and of nothing else\n" for row in range(num_rows))
    return path


def peak_mb(folder: Path, modality: str, source: Path, specification: str, asked: argparse.Namespace) -> float:
    """Returns the peak of one extract of `source`."""
    part_rows = asked.image_part_rows if modality == "image" else asked.text_part_rows
    ran = run_pipeline(
        *("extract", f"--{modality}s", source, "--teacher", specification, "--cache", folder / f"cache-{source.name}"),
        *("--part-rows", part_rows, "--batch-size", 64, "--decode-workers", asked.decode_workers, "--no-index"),
        sample_memory=True,
    )
    return round(ran.peak_bytes / 1e6, 1)


def measure(folder: Path, modality: str, specification: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Returns rows and peaks of the small and of the large extract."""
    few = 2 * (asked.image_part_rows if modality == "image" else asked.text_part_rows)
    sources = []
    for num_rows in (few, few * asked.factor):
        if modality == "image":
            sources.append(write_folder(folder / f"images-{num_rows}", payloads_of(asked.pictures, num_rows)))
        else:
            sources.append(write_texts(folder / f"texts-{num_rows}.txt", num_rows))
    less, more = (peak_mb(folder, modality, source, specification, asked) for source in sources)
    return {
        "rows": few,
        "peak_mb": less,
        "more_rows": few * asked.factor,
        "more_peak_mb": more,
        "peak_ratio": round(more / less, 3),
        "decode_workers": asked.decode_workers if modality == "image" else 0,
        "part_rows": few // 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modality", nargs="+", choices=("image", "text"), default=["image", "text"])
    parser.add_argument("--teacher", choices=("stub", "composed"), default="stub")
    parser.add_argument(
        "--pictures", type=Path, help="folder or tar of JPEG pictures; the demo's drawings if not given"
    )
    parser.add_argument("--factor", type=int, default=10)
    parser.add_argument("--image-part-rows", type=int, default=512)
    parser.add_argument("--text-part-rows", type=int, default=16_384)
    parser.add_argument("--decode-workers", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        specification = STUB if asked.teacher == "stub" else composed(folder / "teacher")
        result = {modality: measure(folder, modality, specification, asked) for modality in asked.modality}
    print_table([{"modality": modality, **figures} for modality, figures in result.items()], COLUMNS)
    print(json.dumps({"teacher": asked.teacher, **result}, indent=1))


if __name__ == "__main__":
    main()
