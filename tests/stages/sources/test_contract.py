"""What every kind of source promises; a new line in `SOURCES` needs an example here and is then tested too."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import RefusedError, UsageError
from cache_schema.layout import Modality
from stages.files.keys import hash_of_key
from stages.sources import SOURCES, Source, expand, open_source
from tests.corpora.compressing import write_compressed
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_npy
from tests.corpora.pictures import jpeg
from tests.corpora.webdataset import write_tar

NUM_SAMPLES = 7


def write_folder(path: Path, num_samples: int) -> Path:
    for number in range(num_samples):
        file = path / f"class{number % 2}" / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(8, 8, number))
    return path


def write_images_tar(path: Path, num_samples: int) -> Path:
    members = []
    for number in range(num_samples):
        members += [(f"d/{number:03d}.jpg", jpeg(8 + number, 8, number)), (f"d/{number:03d}.txt", b"a caption")]
    return write_tar(path, members)


def write_all_images_tar(path: Path, num_samples: int) -> Path:
    names = [f"{number // 3}.{'jpg' if number % 3 == 0 else f'{number}.png'}" for number in range(num_samples)]
    return write_tar(path, [(name, jpeg(8 + number, 8, number)) for number, name in enumerate(names)])


def write_texts_tar(path: Path, num_samples: int) -> Path:
    members = [("d/a.txt", b"a sentence of its own"), ("d/a.jpg", jpeg(8, 8))]
    members += [("d/b.0.txt", b"first\n"), ("d/b.1.txt", b"second\r\n"), ("d/b.json", b'{"caption": "not this"}')]
    captions = [f"sentence № {number}" for number in range(num_samples - 3)]
    return write_tar(path, [*members, ("d/c.json", json.dumps({"caption": captions}).encode())])


def write_text(path: Path, num_samples: int) -> Path:
    return write_compressed(path, b"".join(b"sentence number %d\n" % number for number in range(num_samples)))


def write_image_table(path: Path, num_samples: int) -> Path:
    payloads = [jpeg(8, 8, number) for number in range(num_samples)]
    pq.write_table(pa.table({"image": payloads, "other": [1] * num_samples}), path, row_group_size=3)
    return path


def write_table_of_paths(path: Path, num_samples: int) -> Path:
    write_folder(path.with_name("pictures"), num_samples)
    names = sorted(str(file.relative_to(path.with_name("pictures"))) for file in path.parent.rglob("*.jpg"))
    pq.write_table(pa.table({"file": names}), path, row_group_size=3)
    return path


def write_text_table(path: Path, num_samples: int) -> Path:
    texts = [f"sentence number {number}" for number in range(num_samples)]
    keys = [f"k{number}" for number in range(num_samples)]
    pq.write_table(pa.table({"text": texts, "id": keys}), path, row_group_size=2)
    return path


def write_image_tsv(path: Path, num_samples: int) -> Path:
    lines = [f"k{number}\t{b64encode(jpeg(8 + number, 8, number)).decode()}\n" for number in range(num_samples)]
    path.write_text("".join(lines))
    return path


def write_text_tsv(path: Path, num_samples: int) -> Path:
    captions = [json.dumps({"captions": [f"sentence № {number}"]}) for number in range(num_samples)]
    captions[2] = "a sentence as it stands"
    path.write_text("".join(f"k{number}\t{caption}\n" for number, caption in enumerate(captions)))
    return path


def write_features(path: Path, num_samples: int) -> Path:
    return write_npy(path, keys_of(num_samples), sentences_of(num_samples), vectors(num_samples))


def write_json_lines(path: Path, num_samples: int) -> Path:
    lines = [
        json.dumps({"id": f"k{n}", "text": f"sentence № {n}"}, ensure_ascii=n % 2 == 0) for n in range(num_samples)
    ]
    return write_compressed(path, "".join(f"{line}\n" for line in lines).encode())


def write_json_images(path: Path, num_samples: int) -> Path:
    images = [b64encode(jpeg(8 + number, 8, number)).decode() for number in range(num_samples)]
    return write_compressed(path, "".join(json.dumps({"image": image}) + "\n" for image in images).encode())


def write_csv(path: Path, num_samples: int) -> Path:
    buffer = io.StringIO(newline="")
    rows = [
        (f"k{number}", f'sentence "{number}",\nin two lines' * (number % 2) or "plain") for number in range(num_samples)
    ]
    csv.writer(buffer, delimiter="\t" if ".tsv" in path.name else ",").writerows([("id", "text"), *rows])
    return write_compressed(path, buffer.getvalue().encode())


def write_csv_of_paths(path: Path, num_samples: int) -> Path:
    write_folder(path.with_name("pictures"), num_samples)
    names = sorted(str(file.relative_to(path.parent)) for file in path.with_name("pictures").rglob("*.jpg"))
    path.write_text("".join(f"{number};{name}\n" for number, name in enumerate(names)))
    return path


EXAMPLES: dict[str, tuple[Callable[[Path, int], Path], str, str, Modality]] = {
    "csv": (write_csv, "texts.csv", "", "text"),
    "csv with tabs, compressed": (write_csv, "texts.tsv.gz", "?key_column=id", "text"),
    "csv of paths": (write_csv_of_paths, "paths.csv", "?header=no&path_column=2&key_column=1&delimiter=;", "image"),
    "dime-fm": (write_image_tsv, "dime-fm:images.tsv", "", "image"),
    "dime-fm of texts": (write_text_tsv, "dime-fm:texts.tsv", "", "text"),
    "features": (write_features, "features:features.npy", "?format=npy", "image"),
    "folder": (write_folder, "images", "", "image"),
    "jsonl": (write_json_lines, "texts.jsonl", "?key_column=id", "text"),
    "jsonl compressed": (write_json_lines, "texts.jsonl.zst", "", "text"),
    "jsonl of images": (write_json_images, "images.ndjson", "", "image"),
    "tar": (write_images_tar, "images.tar", "", "image"),
    "tar of all images": (write_all_images_tar, "all.tar", "?images=all", "image"),
    "tar of texts": (write_texts_tar, "texts.tar", "?ext=*.txt,json", "text"),
    "text": (write_text, "lines.txt", "", "text"),
    "text compressed": (write_text, "lines.txt.zst", "", "text"),
    "parquet": (write_image_table, "images.parquet", "", "image"),
    "parquet of paths": (write_table_of_paths, "paths.parquet", "?path_column=file&root={folder}/pictures", "image"),
    "parquet of texts with keys": (write_text_table, "texts.parquet", "?key_column=id", "text"),
}
EXAMPLE_IDS = list(EXAMPLES)


@pytest.fixture(params=EXAMPLE_IDS)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Source, Callable[[int], Source]]:
    """A source of NUM_SAMPLES samples, and a way to write it again with another number of them."""
    write, name, options, modality = EXAMPLES[request.param]

    def written(num_samples: int) -> Source:
        kind, _, base = name.rpartition(":")
        write(tmp_path / base, num_samples)
        (source,) = expand(f"{kind}{kind and ':'}{tmp_path / base}{options.format(folder=tmp_path)}", modality)
        return source

    return written(NUM_SAMPLES), written


def test_every_kind_of_source_has_an_example() -> None:
    assert {name.split()[0] for name in EXAMPLES} == set(SOURCES)


def test_the_kind_in_the_registry_is_the_kind_of_the_class() -> None:
    for kind, source_class in SOURCES.items():
        assert source_class.kind == kind


def test_a_scan_counts_what_read_yields(example: tuple[Source, Callable[[int], Source]]) -> None:
    source, _ = example
    scan = source.scan()
    samples = list(source.read(0, scan.num_samples, scan.offset_bytes(0)))
    assert scan.num_samples == len(samples) == NUM_SAMPLES
    assert scan.offsets.dtype == np.int64 and len(scan.offsets) == NUM_SAMPLES
    assert scan.key_hashes.dtype == np.uint64 and len(scan.key_hashes) in (0, NUM_SAMPLES)
    assert len({sample.key for sample in samples}) == NUM_SAMPLES
    if len(scan.key_hashes):
        assert scan.key_hashes.tolist() == [hash_of_key(sample.key) for sample in samples]
    for sample in samples:
        assert sample.status == "ok" and sample.payload and len(sample.payload) == sample.size_bytes


def test_read_can_start_at_every_sample(example: tuple[Source, Callable[[int], Source]]) -> None:
    source, _ = example
    scan = source.scan()
    samples = list(source.read(0, NUM_SAMPLES, scan.offset_bytes(0)))
    for first in range(NUM_SAMPLES):
        for num_samples in (0, 1, NUM_SAMPLES - first):
            part = list(source.read(first, num_samples, scan.offset_bytes(first)))
            assert part == samples[first : first + num_samples]


def test_read_one_returns_the_same_payload_from_a_source_opened_afresh(
    example: tuple[Source, Callable[[int], Source]],
) -> None:
    source, _ = example
    scan = source.scan()
    fresh = open_source(source.uri, source.kind, source.modality, source.options)
    for sample in reversed(list(source.read(0, NUM_SAMPLES, scan.offset_bytes(0)))):
        assert fresh.read_one(sample.key, sample.offset_bytes, sample.size_bytes) == sample.payload
    first = next(iter(fresh.read(0, 1, scan.offset_bytes(0))))
    with pytest.raises(RefusedError):
        fresh.read_one(first.key, first.offset_bytes, 1 << 60)


def test_the_fingerprint_is_the_same_until_the_samples_change(
    example: tuple[Source, Callable[[int], Source]],
) -> None:
    source, written = example
    before = source.scan().fingerprint
    assert written(NUM_SAMPLES).scan().fingerprint == before
    assert written(NUM_SAMPLES + 1).scan().fingerprint != before


def test_reading_more_than_there_is_refuses(example: tuple[Source, Callable[[int], Source]]) -> None:
    source, _ = example
    scan = source.scan()
    with pytest.raises(RefusedError, match=r"restore|changed"):
        list(source.read(NUM_SAMPLES - 1, 2, scan.offset_bytes(NUM_SAMPLES - 1)))


def test_a_source_that_is_gone_refuses(example: tuple[Source, Callable[[int], Source]]) -> None:
    source, _ = example
    scan = source.scan()
    gone = open_source(source.uri + "-gone", source.kind, source.modality, source.options)
    with pytest.raises((RefusedError, UsageError), match="gone"):
        list(gone.read(0, 1, scan.offset_bytes(0)))
    sample = next(iter(source.read(0, 1, scan.offset_bytes(0))))
    with pytest.raises(RefusedError, match="restore"):
        gone.read_one(sample.key, sample.offset_bytes, sample.size_bytes)


def test_damage_anywhere_is_refused_or_leaves_every_row_in_its_place(
    example: tuple[Source, Callable[[int], Source]],
) -> None:
    source, _ = example
    if not os.path.isfile(source.uri) or source.kind == "features":
        pytest.skip("not one file with the samples in it")
    scan = source.scan()
    keys = [sample.key for sample in source.read(0, NUM_SAMPLES, scan.offset_bytes(0))]
    whole = Path(source.uri).read_bytes()
    for at in np.linspace(0, len(whole) - 1, 40).astype(int):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            Path(source.uri).write_bytes(damaged)
            fresh = open_source(source.uri, source.kind, source.modality, source.options)
            try:
                found = [sample.key for sample in fresh.read(0, NUM_SAMPLES, scan.offset_bytes(0))]
            except (RefusedError, UsageError):
                continue
            # A key is data too: one flipped byte may turn it into another one, but no row may be lost or moved.
            assert len(found) == NUM_SAMPLES
            assert sum(one != other for one, other in zip(found, keys, strict=True)) <= 1
            with contextlib.suppress(RefusedError, UsageError):
                fresh.scan()


def test_a_corpus_in_another_order_keeps_every_key_with_its_payload(tmp_path: Path) -> None:
    def pairs(write: Callable[[Path, list[int]], str], order: list[int], modality: Modality) -> dict[str, bytes | None]:
        (source,) = expand(write(tmp_path, order), modality)
        scan = source.scan()
        return {sample.key: sample.payload for sample in source.read(0, scan.num_samples, scan.offset_bytes(0))}

    def jsonl(folder: Path, order: list[int]) -> str:
        lines = [json.dumps({"id": n, "text": f"sentence {n}"}) + "\n" for n in order]
        return f"{write_compressed(folder / 'p.jsonl.gz', ''.join(lines).encode())}?key_column=id"

    def rows(folder: Path, order: list[int]) -> str:
        (folder / "p.csv").write_text("text,id\n" + "".join(f'"sentence\n{n}",{n}\n' for n in order))
        return f"{folder / 'p.csv'}?key_column=id"

    def table(folder: Path, order: list[int]) -> str:
        pq.write_table(pa.table({"id": order, "text": [f"sentence {n}" for n in order]}), folder / "p.parquet")
        return f"{folder / 'p.parquet'}?key_column=id"

    def texts(folder: Path, order: list[int]) -> str:
        members = [(f"{n}.json", json.dumps({"caption": [f"a {n}", f"b {n}"]}).encode()) for n in order]
        return str(write_tar(folder / "p.tar", members))

    order = [4, 0, 3, 1, 2]
    for write in (jsonl, rows, table, texts):
        in_order = pairs(write, sorted(order), "text")
        assert pairs(write, order, "text") == in_order and None not in in_order.values()


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "folder"])
def test_a_pipe_in_place_of_a_file_is_never_opened(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    modality = SOURCES[kind].modalities[0]
    with pytest.raises(UsageError, match="regular file"):
        open_source(str(tmp_path / "pipe"), kind, modality, {}).scan()
    with pytest.raises(UsageError, match="never opened"):
        expand(f"{kind}:{tmp_path / 'pipe'}", modality)


@pytest.mark.parametrize("kind", list(SOURCES))
def test_an_unknown_option_or_a_wrong_modality_is_a_usage_error(kind: str) -> None:
    with pytest.raises(UsageError, match=f"unknown option of a {kind} source 'colum'"):
        open_source("/nowhere", kind, SOURCES[kind].modalities[0], {"colum": "x"})
    for modality in ("image", "text"):
        if modality not in SOURCES[kind].modalities:
            with pytest.raises(UsageError, match=f"holds no {modality}s"):
                open_source("/nowhere", kind, modality, {})


def test_reading_sources_needs_no_torch() -> None:
    heavy = "{'torch', 'ray', 'zarr', 'faiss'}"
    code = f"import sys, stages.sources, stages.images.pool; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
