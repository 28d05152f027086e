"""Real pictures for the benchmarks: the demo's drawings, or whatever folder or tar is given."""

import tarfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg")


def payloads_of(source: Path | None, num_pictures: int) -> list[bytes]:
    """Returns `num_pictures` JPEG files' bytes from a folder or a tar, or drawn by the demo; from the start again
    when there are fewer."""
    found = list(islice(_from_start(source, num_pictures), num_pictures))
    if not found:
        raise SystemExit(f"no JPEG pictures in {source}: name a folder or a tar that has some")
    return list(islice(cycle(found), num_pictures))


def write_folder(folder: Path, payloads: list[bytes]) -> Path:
    """Writes the pictures as `000000.jpg` … into `folder`, and returns it."""
    folder.mkdir(parents=True)
    for number, payload in enumerate(payloads):
        (folder / f"{number:06}.jpg").write_bytes(payload)
    return folder


def _from_start(source: Path | None, num_pictures: int) -> Iterator[bytes]:
    if source is None:
        from pipeline.demo.pictures import draw_all, list_emoji

        yield from draw_all(list_emoji()[:num_pictures])
    elif source.is_dir():
        for path in sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS):
            yield path.read_bytes()
    else:
        with tarfile.open(source) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.lower().endswith(EXTENSIONS) else None
                if file is not None:
                    yield file.read()
