"""Compressed text: the same rows as the plain file, one pass for parts read in order, and damage that is refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.errors import DamagedError, MismatchError
from stages.files import compressed as compressed_module
from stages.files.compressed import content_of
from stages.sources import expand
from stages.sources.text import TextSource
from tests.corpora.compressing import compressed, write_compressed

CONTENT = b"".join(b"sentence %d\n" % number for number in range(5_000))
EXTENSIONS = (".gz", ".zst")


@pytest.fixture(params=EXTENSIONS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_compressed(tmp_path / f"lines.txt{request.param}", CONTENT)


def read_through(path: Path) -> bytes:
    with content_of(str(path)) as content:
        return content.read()


def test_a_compressed_file_is_the_source_that_the_plain_one_is(path: Path, tmp_path: Path) -> None:
    (source,) = expand(str(path), "text")
    plain = TextSource(str(write_compressed(tmp_path / "plain.txt", CONTENT)), "text", {})
    scan, expected = source.scan(), plain.scan()
    assert source.kind == "text" and scan.fingerprint == expected.fingerprint
    assert scan.offsets.tolist() == expected.offsets.tolist()
    for first, num_samples in ((0, 5_000), (4_321, 10), (4_999, 1)):
        samples = list(source.read(first, num_samples, scan.offset_bytes(first)))
        assert samples == list(plain.read(first, num_samples, scan.offset_bytes(first)))


def test_parts_read_in_order_decompress_the_file_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TextSource(str(path), "text", {})
    scan = source.scan()
    opened: list[str] = []
    really = compressed_module._decompressed
    monkeypatch.setattr(compressed_module, "_decompressed", lambda uri, stack: opened.append(uri) or really(uri, stack))
    for first in range(0, 5_000, 500):
        samples = source.read(first, 500, scan.offset_bytes(first))
        # As the worker does: it asks for as many as were planned, and not whether there is another one.
        assert [next(samples).key for _ in range(500)] == [str(first + at + 1) for at in range(500)]
    assert len(opened) == 1
    for first in (0, 2_000, 1_000):
        list(source.read(first, 1, scan.offset_bytes(first)))
    assert len(opened) == 3


def test_no_more_than_a_few_half_read_files_stay_open(tmp_path: Path) -> None:
    for number in range(12):
        source = TextSource(str(write_compressed(tmp_path / f"{number}.txt.gz", CONTENT)), "text", {})
        list(source.read(0, 1, 0))
    assert len(compressed_module._kept) <= compressed_module._MAX_KEPT


def test_a_file_that_changed_between_two_parts_is_not_read_on_from_the_old_one(path: Path) -> None:
    source = TextSource(str(path), "text", {})
    scan = source.scan()
    list(source.read(0, 10, 0))
    write_compressed(path, CONTENT.replace(b"sentence", b"SENTENCE") + b"more\n")
    sample = next(iter(source.read(10, 1, scan.offset_bytes(10))))
    assert sample.payload == b"SENTENCE 10"


def test_several_members_in_one_file_are_one_content(path: Path) -> None:
    path.write_bytes(compressed(CONTENT, path.suffix) + compressed(b"more\n", path.suffix))
    assert read_through(path) == CONTENT + b"more\n"


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(min_value=1), extension=st.sampled_from(EXTENSIONS))
def test_a_compressed_file_cut_anywhere_is_refused_by_name(
    cut: int, extension: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / f"lines.txt{extension}"
    whole = compressed(CONTENT, extension)
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(DamagedError, match=str(path)):
        TextSource(str(path), "text", {}).scan()


@pytest.mark.parametrize("garbage", [b"x", b"garbage after the end", b"\xff" * 5000], ids=len)
def test_what_goes_on_after_its_end_is_refused(garbage: bytes, path: Path) -> None:
    path.write_bytes(compressed(CONTENT, path.suffix) + garbage)
    with pytest.raises(DamagedError, match="goes on after its end"):
        TextSource(str(path), "text", {}).scan()


def test_a_flipped_bit_is_refused(path: Path) -> None:
    whole = bytearray(compressed(CONTENT, ".gz"))
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)
    with pytest.raises(DamagedError, match="fetch it again"):
        TextSource(str(path), "text", {}).scan()


def test_content_and_name_must_agree(tmp_path: Path) -> None:
    cases = {"a.txt.gz": CONTENT, "b.txt.gz": compressed(CONTENT, ".zst"), "c.txt": compressed(CONTENT, ".gz")}
    cases |= {"d.txt.zst": compressed(CONTENT, ".gz"), "e.txt": compressed(CONTENT, ".zst"), "f.txt.zst": b""}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DamagedError, match=r"name|is empty"):
            TextSource(str(tmp_path / name), "text", {}).scan()


def test_a_compressed_file_of_nothing_is_an_empty_shard(path: Path) -> None:
    path.write_bytes(compressed(b"", path.suffix))
    assert TextSource(str(path), "text", {}).scan().num_samples == 0


def test_content_that_ends_before_the_planned_part_is_refused(path: Path) -> None:
    source = TextSource(str(path), "text", {})
    with pytest.raises(MismatchError, match="restore it"):
        list(source.read(0, 1, len(CONTENT) + 1))


def test_a_compressed_file_that_grows_beyond_measure_is_read_in_flat_memory(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "bomb.txt.zst", b"a\n" + bytes(64 << 20).replace(b"\0", b"x") + b"\nb\n")
    assert path.stat().st_size < 100_000
    source = TextSource(str(path), "text", {})
    scan = source.scan()
    statuses = [sample.status for sample in source.read(0, 3, scan.offset_bytes(0))]
    assert statuses == ["ok", "text-too-long", "ok"]
