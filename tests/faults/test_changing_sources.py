"""Sources that change, vanish or look alike while a cache is filled: no row is mixed, lost, or taken for another."""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError
from cache_schema.layout import Modality, shard_path
from cache_schema.samples import digest_of
from cache_schema.verify import verify_cache
from stages.distill.payloads import Originals
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from tests.corpora.command_line import invoke
from tests.corpora.damaged_files import flip_bit
from tests.corpora.extracts import digests_of, extract, extract_config, run_parts
from tests.corpora.pictures import encoded, noise
from tests.corpora.stub_teacher import stub
from tests.corpora.webdataset import write_tar

NUM_ROWS = 12


def picture(number: int) -> bytes:
    """Returns a BMP: all of a size, and different."""
    return encoded(noise(8, 8, seed=number), "BMP")


def sentence(number: int) -> bytes:
    return f"sentence number {number:03d}".encode()


def write_folder(place: Path, payloads: list[bytes]) -> Path:
    place.mkdir(exist_ok=True)
    for number, payload in enumerate(payloads):
        path = place / f"{number:03d}.bmp"
        if not path.exists() or path.read_bytes() != payload:
            path.write_bytes(payload)
    return place


def write_list(place: Path, payloads: list[bytes]) -> Path:
    write_folder(place.with_name(place.name + "_files"), payloads)
    table = place.with_suffix(".csv")
    if not table.exists():
        rows = "".join(f"{place.name}_files/{number:03d}.bmp,{number:03d}\n" for number in range(len(payloads)))
        table.write_text("path,name\n" + rows)
    return table


def write_image_tar(place: Path, payloads: list[bytes]) -> Path:
    return write_tar(place.with_suffix(".tar"), [(f"{n:03d}.bmp", payload) for n, payload in enumerate(payloads)])


def write_text_tar(place: Path, payloads: list[bytes]) -> Path:
    return write_tar(place.with_suffix(".tar"), [(f"{n:03d}.txt", payload) for n, payload in enumerate(payloads)])


def write_parquet(place: Path, payloads: list[bytes]) -> Path:
    keys = [f"{number:03d}" for number in range(len(payloads))]
    table = pa.table({"name": keys, "image": pa.array(payloads, pa.binary())})
    pq.write_table(table, place.with_suffix(".parquet"), compression="none", use_dictionary=False)
    return place.with_suffix(".parquet")


def write_text(place: Path, payloads: list[bytes]) -> Path:
    place.with_suffix(".txt").write_bytes(b"".join(payload + b"\n" for payload in payloads))
    return place.with_suffix(".txt")


def write_jsonl(place: Path, payloads: list[bytes]) -> Path:
    lines = [json.dumps({"text": payload.decode(), "name": f"{n:03d}"}) for n, payload in enumerate(payloads)]
    place.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    return place.with_suffix(".jsonl")


@dataclass(frozen=True)
class Kind:
    """A kind of source in these tests: how it is written, and what is asked for behind its path."""

    modality: Modality
    write: Callable[[Path, list[bytes]], Path]
    options: str = ""
    has_files: bool = False

    def payloads(self, first: int = 0) -> list[bytes]:
        make = picture if self.modality == "image" else sentence
        return [make(number) for number in range(first, first + NUM_ROWS)]

    def config(self, cache: Path, *paths: Path, **fields: object) -> ExtractConfig:
        uris = tuple(f"{path}{self.options}" for path in paths)
        return replace(extract_config(cache, part_rows=4, **fields), **{f"{self.modality}s": uris})


KINDS = {
    "folder": Kind("image", write_folder, has_files=True),
    "list": Kind("image", write_list, "?path_column=path&key_column=name", has_files=True),
    "tar": Kind("image", write_image_tar),
    "parquet": Kind("image", write_parquet, "?key_column=name"),
    "text": Kind("text", write_text),
    "texts in a tar": Kind("text", write_text_tar),
    "jsonl": Kind("text", write_jsonl, "?key_column=name"),
}
FILES = [name for name, kind in KINDS.items() if kind.has_files]
WHOLE = [name for name, kind in KINDS.items() if not kind.has_files]


def alone(config: ExtractConfig, **fields: object) -> ExtractConfig:
    """Returns the configuration that names the cache alone."""
    return replace(config, images=(), texts=(), **fields)  # type: ignore[arg-type]


def keeping_time(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changed(payloads: list[bytes], *numbers: int) -> list[bytes]:
    """Returns `payloads` with others of the same sizes at `numbers`."""
    return [
        bytes(reversed(p)) if n in numbers and p[:2] != b"BM" else other(p, n, numbers) for n, p in enumerate(payloads)
    ]


def other(payload: bytes, number: int, numbers: tuple[int, ...]) -> bytes:
    return picture(number + 1000) if number in numbers and payload[:2] == b"BM" else payload


def outcome(cache: Path, modality: Modality) -> list[tuple[str, str, bytes | None]]:
    """Returns (key, status, digest) of every committed row, in order."""
    opened = Cache.open(cache)
    array = opened.array(modality)
    rows = []
    for part in sorted(array.committed):
        digests = opened.samples(modality, part).column("digest").to_pylist()
        rows += [
            (key, status, digest) for (_, key, status, _), digest in zip(array.outcome(part), digests, strict=True)
        ]
    return rows


def statuses(cache: Path, modality: Modality) -> Counter[str]:
    return Counter(status for _, status, _ in outcome(cache, modality))


# A source that changed after it was planned


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_changed_fails_its_parts_when_the_cache_alone_is_named(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config, only=1)
    keeping_time(path, lambda: kind.write(tmp_path / "data", changed(kind.payloads(), 2, 9)))
    with pytest.raises(MismatchError, match="changed since it was planned"):
        extract(alone(config))
    assert len(outcome(config.cache, kind.modality)) == 4
    with pytest.raises(MismatchError, match="changed since it was planned"):
        extract(config)
    keeping_time(path, lambda: kind.write(tmp_path / "data", kind.payloads()))
    extract(alone(config))
    undisturbed = kind.config(tmp_path / "other", path)
    extract(undisturbed)
    assert digests_of(config.cache) == digests_of(undisturbed.cache)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_many_that_changed_before_it_was_read_is_its_rows_matter(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config, only=1)
    kind.write(tmp_path / "data", changed(kind.payloads(), 9))
    for again in (alone(config), config):
        extract(again)
        rows = outcome(config.cache, kind.modality)
        assert [status for _, status, _ in rows] == ["ok"] * 9 + ["src-changed"] + ["ok"] * 2
    assert verify_cache(config.cache) == []


def test_a_resized_file_of_a_folder_is_its_rows_matter_too(tmp_path: Path) -> None:
    kind = KINDS["folder"]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config, only=1)
    (path / "009.bmp").write_bytes(encoded(noise(9, 9), "BMP"))
    extract(config)
    assert statuses(config.cache, "image") == {"ok": 11, "src-changed": 1}


@pytest.mark.parametrize("name", KINDS)
def test_a_row_that_changed_after_it_was_committed_is_refused_by_whoever_goes_on(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config, only=1)
    kind.write(tmp_path / "data", changed(kind.payloads(), 2))
    with pytest.raises(MismatchError, match="--accept-new"):
        extract(config)
    before = outcome(config.cache, kind.modality)
    with pytest.raises(MismatchError, match="--accept-new"):
        extract(alone(config))
    assert outcome(config.cache, kind.modality) == before


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("only", "to"), [(0, 0), (1, 0), (1, 4 * 10**18)])
def test_new_times_alone_are_no_change(name: str, only: int, to: int, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config, only=only)
    for file in [path, *tmp_path.rglob("*.bmp")]:
        # Now, or in a time that is still to come.
        os.utime(file, *([] if to == 0 else [(to // 10**9, to // 10**9)]))
    extract(alone(config))
    extract(config)
    undisturbed = kind.config(tmp_path / "other", path)
    extract(undisturbed)
    assert statuses(config.cache, kind.modality) == {"ok": 12}
    assert digests_of(config.cache) == digests_of(undisturbed.cache)


@pytest.mark.parametrize("name", KINDS)
def test_a_source_that_changes_while_a_part_is_read_is_not_committed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    with open_job(config) as job:
        run_parts(job, only=1)
        from stages.extract.worker import PartWorker

        with job.make_worker() as worker:
            assert isinstance(worker, PartWorker)
            encode = (
                type(worker._teacher).encode_images if kind.modality == "image" else type(worker._teacher).encode_texts
            )
            name_of = "encode_images" if kind.modality == "image" else "encode_texts"

            def change_and_encode(teacher: object, inputs: object) -> object:
                monkeypatch.undo()
                kind.write(tmp_path / "data", changed(kind.payloads(), 6, 11))
                return encode(teacher, inputs)  # type: ignore[arg-type]

            monkeypatch.setattr(type(worker._teacher), name_of, change_and_encode)
            if kind.has_files:
                worker(job.tasks[1])
                worker(job.tasks[2])
            else:
                with pytest.raises(MismatchError, match="changed since it was planned"):
                    worker(job.tasks[1])
    expected = {None, *(digest_of(payload) for payload in kind.payloads())}
    assert {digest for _, _, digest in outcome(config.cache, kind.modality)} <= expected


# What a changed source holds now, taken on demand


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("only", "named"), [(0, True), (2, False), (3, True)])
def test_accepting_new_keeps_what_is_found_again_and_plans_the_rest(
    name: str, only: int, named: bool, tmp_path: Path
) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config, only=only)
    now = [*changed(kind.payloads(), 1, 5), *kind.payloads(100)[:3]]
    if name == "list":
        path.unlink()
    kind.write(tmp_path / "data", now)
    accepting = replace(config if named else alone(config), accept_new=True)
    extract(accepting)
    rows = outcome(config.cache, kind.modality)
    ok = Counter(digest for _, status, digest in rows if status == "ok")
    assert ok == Counter(map(digest_of, now))
    kept = [n for n in range(NUM_ROWS) if n < 4 * only and n not in (1, 5)] if name != "text" else []
    if name != "text":
        assert [rows[n][1] for n in range(NUM_ROWS)] == ["ok" if n in kept else "src-changed" for n in range(NUM_ROWS)]
        assert [rows[n][2] for n in kept] == [digest_of(now[n]) for n in kept]
        assert all(rows[n][0] == f"{n:03d}" + (".bmp" if name == "folder" else "") for n in range(4 * only))
    assert verify_cache(config.cache) == []
    before = digests_of(config.cache)
    for again in (config, alone(config), accepting):
        with open_job(again) as job:
            assert job.tasks == []
    assert digests_of(config.cache) == before


@pytest.mark.parametrize("named", [False, True])
def test_a_file_behind_a_table_that_stayed_the_same_is_accepted_too(named: bool, tmp_path: Path) -> None:
    kind = KINDS["list"]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config)
    now = changed(kind.payloads(), 1)
    kind.write(tmp_path / "data", now)
    extract(replace(config if named else alone(config), accept_new=True))
    ok = Counter(digest for _, status, digest in outcome(config.cache, "image") if status == "ok")
    assert ok == Counter(map(digest_of, now))
    assert verify_cache(config.cache) == []


def test_a_part_all_of_which_is_found_again_is_not_read_again(tmp_path: Path) -> None:
    kind = KINDS["folder"]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config)
    (path / "zzz.bmp").write_bytes(picture(77))
    (path / "000a.bmp").write_bytes(picture(78))
    with open_job(replace(config, accept_new=True)) as job:
        assert [task.part.number for task in job.tasks] == [3]
        run_parts(job)
        job.finish()
    assert statuses(config.cache, "image") == {"ok": 14}
    assert verify_cache(config.cache) == []
    # A second teacher reads all of it from the source as it is now.
    extract(alone(config, teacher=stub(version=2), add_teacher=True))
    cache = Cache.open(config.cache)
    assert [cache.array("image", name).num_ok for name in cache.arrays("image")] == [14, 14]
    assert verify_cache(config.cache) == []


def test_a_change_is_accepted_in_every_array_and_in_the_stored_pixels(tmp_path: Path) -> None:
    kind = KINDS["tar"]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path, views=2, store_pixels=8)
    extract(config)
    extract(replace(config, teacher=stub(version=2), add_teacher=True, views=None, store_pixels=None))
    kind.write(tmp_path / "data", changed(kind.payloads(), 1))
    extract(replace(config, accept_new=True))
    extract(alone(config, teacher=stub(version=2), views=None, store_pixels=None))
    cache = Cache.open(config.cache)
    for name in cache.arrays("image"):
        array = cache.array("image", name)
        assert [status for _, _, status, _ in array.outcome(0)] == ["ok", "src-changed", "ok", "ok"], name
        assert array.num_rows == 13
    assert verify_cache(config.cache) == []


@pytest.mark.parametrize("name", KINDS)
def test_killed_between_plan_and_records_the_next_run_does_the_rest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    stored = {"store_pixels": 8, "views": 2} if kind.modality == "image" else {}
    config = kind.config(tmp_path / "cache", path, **stored)
    extract(config)
    now = [*changed(kind.payloads(), 1, 5), *kind.payloads(100)[:3]]
    if name == "list":
        path.unlink()
    kind.write(tmp_path / "data", now)
    remove = atomic.remove_file

    def killed(path: Path) -> None:
        if path.suffix == ".json" and path.parent.name in ("records", "pixels"):
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "remove_file", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(replace(config, accept_new=True))
    assert verify_cache(config.cache) == []
    extract(alone(config))
    ok = Counter(digest for _, status, digest in outcome(config.cache, kind.modality) if status == "ok")
    assert ok == Counter(map(digest_of, now))
    assert verify_cache(config.cache) == []


# Vanished


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_folder_that_vanishes_stops_the_run_and_is_no_row(name: str, left: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    (tmp_path / "mount").mkdir()
    path = kind.write(tmp_path / "mount" / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    with open_job(config) as job, job.make_worker() as worker:
        worker(job.tasks[0])
        (tmp_path / "mount").rename(tmp_path / "away")
        if left != "nothing":
            (tmp_path / "mount").mkdir()
        with pytest.raises(EnvironmentProblem, match="mount"):
            worker(job.tasks[1])
    if left == "nothing":
        with pytest.raises(EnvironmentProblem, match="run again"):
            extract(alone(config))
    else:
        with pytest.raises((EnvironmentProblem, MismatchError)):
            extract(alone(config))
        (tmp_path / "mount").rmdir()
    (tmp_path / "away").rename(tmp_path / "mount")
    extract(alone(config))
    assert statuses(config.cache, kind.modality) == {"ok": 12}


def test_a_mount_below_the_root_that_vanishes_stops_the_run_too(tmp_path: Path) -> None:
    kind = KINDS["list"]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    with open_job(config) as job, job.make_worker() as worker:
        worker(job.tasks[0])
        (tmp_path / "data_files").rename(tmp_path / "away")
        with pytest.raises(EnvironmentProblem, match="data_files"):
            worker(job.tasks[1])
    with pytest.raises(EnvironmentProblem, match="not one of 4 files"):
        extract(alone(config))
    (tmp_path / "away").rename(tmp_path / "data_files")
    extract(alone(config))
    assert statuses(config.cache, "image") == {"ok": 12}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "code", [errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EMFILE, errno.ETIMEDOUT, errno.ENOMEM, errno.ENFILE]
)
def test_a_failure_that_no_file_is_to_blame_for_stops_the_run(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    open_file = os.open

    def failing(file: object, *args: object, **named: object) -> int:
        if str(file).endswith("005.bmp"):
            raise OSError(code, os.strerror(code), str(file))
        return open_file(file, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(EnvironmentProblem, match=r"005\.bmp"):
        extract(config)
    monkeypatch.undo()
    assert len(outcome(config.cache, "image")) == 4
    extract(config)
    assert statuses(config.cache, "image") == {"ok": 12}


@pytest.mark.parametrize("name", FILES)
def test_one_file_that_is_gone_is_its_rows_matter(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    with open_job(config) as job, job.make_worker() as worker:
        worker(job.tasks[0])
        next(tmp_path.rglob("005.bmp")).unlink()
        worker(job.tasks[1])
        worker(job.tasks[2])
    assert statuses(config.cache, "image") == {"ok": 11, "src-unreadable": 1}


# Tried again


@pytest.mark.parametrize("name", FILES)
def test_bad_rows_are_tried_again_in_their_parts_and_nowhere_else(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    missing = next(tmp_path.rglob("005.bmp"))
    missing.rename(tmp_path / "kept")
    if name == "folder":
        missing.symlink_to(tmp_path / "nowhere")
    config = kind.config(tmp_path / "cache", path)
    extract(config)
    extract(replace(config, teacher=stub(version=2), add_teacher=True))
    missing.unlink(missing_ok=True)
    shutil.copy(tmp_path / "kept", missing)
    with open_job(alone(config, retry_bad="src-unreadable")) as job:
        assert [task.part.number for task in job.tasks] == [1]
        run_parts(job)
        job.finish()
    extract(alone(config, teacher=stub(version=2)))
    cache = Cache.open(config.cache)
    assert [cache.array("image", array).num_ok for array in cache.arrays("image")] == [12, 12]
    assert verify_cache(config.cache) == []
    with pytest.raises(ValueError, match="unknown status"):
        extract(alone(config, retry_bad="src-unreadable"))


def test_a_row_of_another_status_must_come_out_as_it_was(tmp_path: Path) -> None:
    kind = KINDS["list"]
    path = kind.write(tmp_path / "data", kind.payloads())
    missing = next(tmp_path.rglob("005.bmp"))
    missing.rename(tmp_path / "kept")
    config = kind.config(tmp_path / "cache", path)
    extract(config)
    (tmp_path / "kept").rename(missing)
    other_picture = next(tmp_path.rglob("006.bmp"))
    with open_job(alone(config, retry_bad="src-unreadable")) as job:
        keeping_time(other_picture, lambda: other_picture.write_bytes(picture(500)))
        with pytest.raises(MismatchError, match="006"):
            run_parts(job)
    keeping_time(other_picture, lambda: other_picture.write_bytes(picture(6)))
    extract(alone(config))
    assert statuses(config.cache, "image") == {"ok": 12}
    assert verify_cache(config.cache) == []


# Taken for another


@pytest.mark.parametrize("name", KINDS)
def test_two_sources_that_look_alike_are_two_and_a_copy_is_one(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    for place in ("one", "two", "copy"):
        (tmp_path / place).mkdir()
    one = kind.write(tmp_path / "one" / "data", kind.payloads())
    two = kind.write(tmp_path / "two" / "data", changed(kind.payloads(), 3, 7))
    copy = kind.write(tmp_path / "copy" / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", one)
    extract(config)
    both = kind.config(tmp_path / "cache", one, two, copy)
    extract(both)
    assert statuses(config.cache, kind.modality) == {"ok": 24}
    extract(both)
    at_once = kind.config(tmp_path / "other", two, copy, one)
    extract(at_once)
    assert statuses(at_once.cache, kind.modality) == {"ok": 24}


def test_one_list_under_two_roots_is_two_sources(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{number:03d}.bmp\n" for number in range(NUM_ROWS)))
    write_folder(tmp_path / "one", [picture(number) for number in range(NUM_ROWS)])
    write_folder(tmp_path / "two", [picture(number) for number in range(50, 50 + NUM_ROWS)])
    uris = tuple(f"{tmp_path}/list.csv?path_column=path&root={tmp_path}/{root}" for root in ("one", "two"))
    config = extract_config(tmp_path / "cache", images=None, part_rows=4)
    for _ in range(2):
        extract(replace(config, images=uris))
    assert statuses(config.cache, "image") == {"ok": 24}


@pytest.mark.parametrize("name", KINDS)
def test_what_moved_is_known_and_what_only_has_its_names_is_new(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    for place in ("one", "two", "three"):
        (tmp_path / place).mkdir()
    config = kind.config(tmp_path / "cache", kind.write(tmp_path / "one" / "data", kind.payloads()))
    extract(config)
    moved = kind.write(tmp_path / "two" / "data", kind.payloads())
    shutil.rmtree(tmp_path / "one")
    extract(kind.config(tmp_path / "cache", moved))
    assert statuses(config.cache, kind.modality) == {"ok": 12}
    shutil.rmtree(tmp_path / "two")
    another = kind.write(tmp_path / "three" / "data", changed(kind.payloads(), *range(NUM_ROWS)))
    extract(kind.config(tmp_path / "cache", another))
    assert statuses(config.cache, kind.modality) == {"ok": 24}


# Nothing of it was usable


def test_a_source_without_a_sample_is_skipped_among_others_and_refused_alone(tmp_path: Path) -> None:
    full = KINDS["tar"].write(tmp_path / "full", KINDS["tar"].payloads())
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), empty)
    config = extract_config(tmp_path / "cache", part_rows=4)
    with pytest.raises(RefusedError, match=r"empty\.parquet"):
        extract(replace(config, images=(str(empty),)))
    with open_job(replace(config, images=(str(full), str(empty)))) as job:
        assert job.sources["image"].empty == (str(empty),)
    with pytest.raises(RefusedError, match=r"empty\.parquet"):
        extract(replace(config, images=(str(empty),)))


@pytest.mark.parametrize("name", KINDS)
def test_a_repair_gives_the_digests_that_were_stored_or_none(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config)
    before, rows = digests_of(config.cache), outcome(config.cache, kind.modality)
    cache = Cache.open(config.cache)
    flip_bit(shard_path(cache.layout.feature_array(kind.modality, cache.arrays(kind.modality)[0]), 1))
    # The row of the damaged part changes in a way that no time and no size tells.
    keeping_time(
        next(tmp_path.rglob("005.bmp"), path), lambda: kind.write(tmp_path / "data", changed(kind.payloads(), 5))
    )
    assert invoke("repair", config.cache, "--quiet").exit_code == 4
    kept = [row for number, row in enumerate(rows) if not 4 <= number < 8]
    assert outcome(config.cache, kind.modality) == kept
    kind.write(tmp_path / "data", kind.payloads())
    for file in tmp_path.rglob("*.bmp"):
        os.utime(file, (1, 1))
    assert invoke("repair", config.cache, "--quiet").exit_code == 0
    assert digests_of(config.cache) == before


@pytest.mark.parametrize("name", KINDS)
def test_a_part_whose_sample_table_was_cut_is_made_again(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config)
    before = digests_of(config.cache)
    table = Cache.open(config.cache).layout.samples(kind.modality, 1)
    table.write_bytes(table.read_bytes()[:-40])
    assert invoke("repair", config.cache, "--quiet").exit_code == 0
    assert digests_of(config.cache) == before


@pytest.mark.parametrize("lost", ["table", "record"])
def test_a_repair_compares_with_whatever_is_left(lost: str, tmp_path: Path) -> None:
    kind = KINDS["list"]
    path = kind.write(tmp_path / "data", kind.payloads())
    config = kind.config(tmp_path / "cache", path)
    extract(config)
    before = digests_of(config.cache)
    cache = Cache.open(config.cache)
    name = cache.arrays("image")[0]
    flip_bit(cache.layout.samples("image", 1) if lost == "table" else cache.layout.record("image", name, 1))
    file = next(tmp_path.rglob("005.bmp"))
    keeping_time(file, lambda: file.write_bytes(picture(500)))
    assert invoke("repair", config.cache, "--quiet").exit_code == 4
    keeping_time(file, lambda: file.write_bytes(picture(5)))
    assert invoke("repair", config.cache, "--quiet").exit_code == 0
    assert digests_of(config.cache) == before
    assert verify_cache(config.cache) == []


def test_students_train_on_the_pictures_of_the_root_that_they_were_read_from(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{number:03d}.bmp\n" for number in range(NUM_ROWS)))
    write_folder(tmp_path / "one", [picture(number) for number in range(NUM_ROWS)])
    write_folder(tmp_path / "two", [picture(number) for number in range(50, 50 + NUM_ROWS)])
    uris = tuple(f"{tmp_path}/list.csv?path_column=path&root={tmp_path}/{root}" for root in ("one", "two"))
    config = replace(extract_config(tmp_path / "cache", part_rows=4), images=uris)
    extract(config)
    originals = Originals()
    for row, location in enumerate(Cache.open(config.cache).locations(np.arange(2 * NUM_ROWS))):
        assert originals.payload(row, location) == picture(row if row < NUM_ROWS else row + 50 - NUM_ROWS)
