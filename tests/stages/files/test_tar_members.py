"""Members of a tar are those that the standard library finds, and samples are members that follow one another."""

import bz2
import contextlib
import hashlib
import io
import lzma
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cache_schema.errors import DamagedError, RefusedError
from stages.files.opened import planned_file
from stages.files.tar_members import Member, TarSample, member_size, read_members, samples_in

FORMATS = pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
END = bytes(1024)


def members_of(path: Path, position: int = 0, ignored: Counter[str] | None = None, digest: Any = None) -> list[Member]:
    with planned_file(str(path)) as file:
        return list(read_members(str(path), file, position, Counter() if ignored is None else ignored, digest))


def info_of(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def header_of(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, *, size_field: bytes | None = None) -> bytes:
    """Returns one header block, with another size field if one is given, and the checksum that goes with it."""
    header = bytearray(info_of(name, size, kind).tobuf(tarfile.GNU_FORMAT))
    if size_field is not None:
        header[124:136] = size_field
    header[148:156] = b"%06o\x00 " % tarfile.calc_chksums(bytes(header))[0]
    return bytes(header)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def written(path: Path, *blocks: bytes) -> Path:
    path.write_bytes(b"".join(blocks))
    return path


@FORMATS
def test_names_sizes_and_places_are_those_of_the_standard_library(tar_format: int, tmp_path: Path) -> None:
    long_name = "/".join(["p" * 60, "q" * 60, "a.jpg"])
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as tar:
        for name, size in [("empty.txt", 0), ("block.bin", 512), (long_name, 513), ("图像/é.jpg", 511), ("z", 1)]:
            tar.addfile(info_of(name, size), io.BytesIO(b"x" * size))
        tar.addfile(info_of("folder", kind=tarfile.DIRTYPE))
        tar.addfile(info_of("link", kind=tarfile.SYMTYPE))
        tar.addfile(info_of("last.txt", 3), io.BytesIO(b"end"))
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    ignored: Counter[str] = Counter()
    found = members_of(tmp_path / "a.tar", ignored=ignored)
    assert [(m.name, m.header_offset, m.offset, m.size) for m in found] == expected and len(found) == 6
    assert ignored == {"symbolic link": 1}, "a folder holds nothing that could be lost"
    for at, member in enumerate(found):
        assert members_of(tmp_path / "a.tar", member.header_offset) == found[at:], "any header is a place to start"


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_a_member_of_more_than_eight_gigabytes_is_found_and_the_one_behind_it(tar_format: int, tmp_path: Path) -> None:
    path, size = tmp_path / "a.tar", 9 << 30
    head = info_of("large.bin", size).tobuf(tar_format)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(len(head) + size)
        file.write(header_of("b.txt", 3) + padded(b"abc") + END)
    large, small = members_of(path)
    assert (large.name, large.offset, large.size) == ("large.bin", len(head), size)
    assert (small.name, small.header_offset, small.size) == ("b.txt", len(head) + size, 3)


def test_a_size_that_stands_in_a_pax_header_counts_and_not_the_one_behind_it(tmp_path: Path) -> None:
    record = b"12 size=600\n"
    extended = header_of("pax", len(record), b"x") + padded(record)
    path = written(tmp_path / "a.tar", extended, header_of("a"), bytes(1024), END)
    with tarfile.open(path) as tar:
        assert [m.size for m in tar.getmembers()] == [600]
    assert [(m.name, m.size) for m in members_of(path)] == [("a", 600)]


@pytest.mark.parametrize(
    "record", [b"99 path=other\n", b"x path=other\n", b"path=other\n", b"3 =", b"14 path=other", b"\x00" * 20]
)
def test_a_pax_header_that_is_none_changes_no_name(record: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", header_of("pax", len(record), b"x"), padded(record), header_of("mine"), END)
    assert [m.name for m in members_of(path)] == ["mine"]


@pytest.mark.parametrize("num_members", [1, 18, 19, 20, 21])
def test_zeros_fill_a_record_of_10240_bytes_and_no_more_unless_they_are_allowed(
    num_members: int, tmp_path: Path
) -> None:
    info = info_of("a", 0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(num_members):
            tar.addfile(info)
    assert len(members_of(tmp_path / "a.tar")) == num_members
    with open(tmp_path / "a.tar", "ab") as file:
        file.write(bytes(512))
    with pytest.raises(
        DamagedError, match=r"ends in [\d,]+ zero bytes, from offset [\d,]+ on.*\?zeros=ok if it is whole"
    ):
        members_of(tmp_path / "a.tar")
    with planned_file(str(tmp_path / "a.tar")) as file:
        assert len(list(read_members("a", file, 0, Counter(), zeros_ok=True))) == num_members


def test_links_are_members_without_a_payload_only_when_asked_for(tmp_path: Path) -> None:
    links = [header_of("h.jpg", 700, tarfile.LNKTYPE), header_of("s.jpg", 0, tarfile.SYMTYPE)]
    path = written(tmp_path / "a.tar", *links, header_of("a"), END)
    ignored: Counter[str] = Counter()
    with planned_file(str(path)) as file:
        found = list(read_members("a", file, 0, ignored, with_links=True))
    expected = [("h.jpg", "hard link", 0), ("s.jpg", "symbolic link", 0), ("a", "", 0)]
    assert [(m.name, m.link, m.size) for m in found] == expected and not ignored
    assert [m.name for m in members_of(path, ignored=ignored)] == ["a"]
    assert ignored == {"hard link": 1, "symbolic link": 1}


def test_what_extends_one_member_says_nothing_of_the_next_and_a_global_header_of_none(tmp_path: Path) -> None:
    record = b"14 path=other\n"
    shared = header_of("pax", len(record), b"g") + padded(record)
    extended = header_of("pax", len(record), b"x") + padded(record)
    path = written(
        tmp_path / "a.tar", shared, header_of("first"), extended, header_of("second"), header_of("last"), END
    )
    assert [(m.name, m.header_offset) for m in members_of(path)] == [("first", 0), ("other", 1536), ("last", 3072)]


def test_members_of_old_tars_are_regular_and_a_link_has_no_body_whatever_size_it_states(tmp_path: Path) -> None:
    old = [header_of("old", 1, kind) + padded(b"x") for kind in (b"\x00", b"7")]
    link = header_of("link", 5000, tarfile.LNKTYPE)
    unknown = header_of("label", 600, b"V") + bytes(1024)
    ignored: Counter[str] = Counter()
    found = members_of(written(tmp_path / "a.tar", *old, link, unknown, header_of("last"), END), ignored=ignored)
    assert [m.name for m in found] == ["old", "old", "last"] and ignored == {"hard link": 1, "of unknown kind": 1}


def test_a_digest_takes_in_name_size_and_kind_of_every_member_and_no_payload(tmp_path: Path) -> None:
    def digest_of(*blocks: bytes) -> str:
        digest = hashlib.sha256()
        members_of(written(tmp_path / "a.tar", *blocks, END), digest=digest)
        return digest.hexdigest()

    link = header_of("l", kind=tarfile.SYMTYPE)
    expected = hashlib.sha256("2 né 3 b'0'\n1 l 0 b'2'\n".encode()).hexdigest()
    assert digest_of(header_of("né", 3), padded(b"abc"), link) == expected
    assert digest_of(header_of("né", 3), padded(b"xyz"), link) == expected
    others = {
        digest_of(header_of("no", 3), padded(b"abc"), link),
        digest_of(header_of("né", 2), padded(b"ab"), link),
        digest_of(header_of("né", 3), padded(b"abc"), header_of("l", kind=tarfile.LNKTYPE)),
        digest_of(header_of("né", 3), padded(b"abc")),
    }
    assert len(others) == 4 and expected not in others


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("zstd", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
    ids=["bzip2", "xz", "zstd"],
)
def test_a_compressed_tar_is_refused_by_the_name_of_its_compression(name: str, compress: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", compress(os.urandom(2000)))
    with pytest.raises(DamagedError, match=rf"a\.tar is compressed with {name}: unpack it to a plain \.tar"):
        members_of(path)


def test_a_name_that_begins_like_a_compressed_file_is_a_name(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", header_of("BZh1.jpg"), header_of("a", 3), padded(b"BZh"), header_of("BZh9"), END)
    assert [m.name for m in members_of(path)] == ["BZh1.jpg", "a", "BZh9"]


@pytest.mark.parametrize("record", [b"12 size=-60\n", b"13 size=6e2x\n", "13 size=٦٠\n".encode()])
def test_a_size_in_a_pax_header_that_is_no_number_is_refused(record: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", header_of("pax", len(record), b"x") + padded(record), header_of("a"), END)
    with pytest.raises(DamagedError, match=r"unreadable size at offset 1,024"):
        members_of(path)


def sparse_tars() -> Iterator[tuple[str, list[bytes]]]:
    yield "of GNU", [header_of("a", 0, b"S")]
    for record in (b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.map=0,1\n"):
        yield record.decode()[3:-1], [header_of("pax", len(record), b"x"), padded(record), header_of("a")]


@pytest.mark.parametrize("blocks", [pytest.param(blocks, id=name) for name, blocks in sparse_tars()])
def test_a_sparse_member_is_refused_with_its_place_and_a_way_out(blocks: list[bytes], tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", *blocks, END)
    said = rf"sparse member at offset {(len(blocks) - 1) * 512:,} is not supported: tar it plainly"
    with pytest.raises(RefusedError, match=said):
        members_of(path)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_an_extended_header_beyond_64_kib_or_cut_is_refused_before_it_is_read(kind: bytes, tmp_path: Path) -> None:
    large = written(tmp_path / "large.tar", header_of("pax", (1 << 16) + 1, kind), bytes(1 << 17), END)
    with pytest.raises(DamagedError, match=r"extended header of 65,537 bytes at offset 0: write it again"):
        members_of(large)
    cut = written(tmp_path / "cut.tar", header_of("pax", 700, kind), bytes(512))
    with pytest.raises(DamagedError, match=r"ends inside an extended header at offset 512 of 1,024: it is cut; fetch"):
        members_of(cut)


@pytest.mark.parametrize("size_field", [b"\xff" * 12, b"\x81" + b"\x00" * 11], ids=["negative", "of 89 bits"])
def test_a_size_that_no_file_can_have_is_refused(size_field: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", header_of("a", size_field=size_field), END)
    with pytest.raises(DamagedError, match=r"member 'a' at offset 0 claims [\d,]{25} bytes, the file ends at 1,536"):
        members_of(path)


@pytest.mark.parametrize("size_field", [b"0000000000x\x00", b"-0000001000\x00", b"+000000010 \x00", b"0_000000010\x00"])
def test_a_size_that_is_no_number_is_refused_with_its_place(size_field: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", header_of("a"), header_of("b", size_field=size_field), END)
    with pytest.raises(DamagedError, match=r"unreadable size at offset 512: it is damaged; fetch it again"):
        members_of(path)


@pytest.mark.parametrize("num_zeros", [1024, 9728])
def test_zeros_behind_the_end_mark_are_padding_and_anything_else_is_refused(num_zeros: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", header_of("a"), bytes(num_zeros))
    assert [m.name for m in members_of(path)] == ["a"]
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedError, match=r"goes on after its end mark at offset 512: .*tar --concatenate"):
        members_of(path)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([], r"is empty \(0 bytes\), not a tar: fetch it again, or leave it out"),
        ([b"x" * 100], r"ends inside a header at offset 0 of 100: it is cut"),
        ([header_of("a")], r"has no end mark at offset 512 of 512: it is cut"),
        ([header_of("a"), bytes(512)], r"has half an end mark at offset 512 of 1,024: it is cut"),
        ([header_of("a", 600), bytes(600)], r"has no end mark at offset 1,536 of 1,112: it is cut"),
        ([b"x" * 512, END], r"is not a tar \(no header at offset 0\): name its kind, as in text:PATH"),
        ([header_of("a"), b"x" * 512, END], r"no valid header at offset 512: it is damaged; fetch it again"),
    ],
    ids=["empty", "part of a header", "no end", "half an end", "no padding", "another file", "damaged header"],
)
def test_a_tar_that_is_cut_or_damaged_is_refused_saying_how_and_where(
    blocks: list[bytes], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DamagedError, match=said):
        members_of(written(tmp_path / "a.tar", *blocks))


def test_the_size_of_a_payload_stands_right_before_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", header_of("a", 7), padded(b"1234567"), header_of("b", 0), END)
    with planned_file(str(path)) as file:
        assert [member_size("a.tar", file, offset) for offset in (512, 1536)] == [7, 0]
        with pytest.raises(DamagedError, match=r"a\.tar: no valid header at offset 512: it is damaged"):
            member_size("a.tar", file, 1024)
        with pytest.raises(DamagedError, match=r"a\.tar ends inside a header at offset 9,728 of 2,560: it is cut"):
            member_size("a.tar", file, 9728)


def as_members(*names: str) -> list[Member]:
    return [Member(name, 1000 * number, 1000 * number + 512, number) for number, name in enumerate(names)]


def samples_of(*names: str) -> list[tuple[str, list[str]]]:
    samples = samples_in(iter(as_members(*names)), Counter())
    return [(sample.key, [extension for extension, _ in sample.members]) for sample in samples]


def test_a_sample_is_the_members_that_share_a_path_up_to_its_first_dot() -> None:
    assert samples_of("a.jpg", "a.json", "b.jpg") == [("a", ["jpg", "json"]), ("b", ["jpg"])]
    assert samples_of("v1.0/a.seg.png", "v1.0/a.png") == [("v1.0/a", ["seg.png", "png"])], "dots of folders say nothing"
    assert samples_of("x/a.jpg", "y/a.jpg", "a.jpg") == [("x/a", ["jpg"]), ("y/a", ["jpg"]), ("a", ["jpg"])]
    assert samples_of("a.JPG", "A.jpg") == [("a", ["jpg"]), ("A", ["jpg"])], "case counts in keys alone"
    assert samples_of("a.jpg", "a.JPG") == [("a", ["jpg"]), ("a", ["jpg"])], "no member takes the place of another"
    assert samples_of("a.", "é.图") == [("a", [""]), ("é", ["图"])]
    assert samples_of() == []


def test_a_sample_starts_where_its_first_member_does_and_keeps_the_members_themselves() -> None:
    members = as_members("a.jpg", "b.jpg", "b.txt")
    first, second = samples_in(iter(members), Counter())
    assert first == TarSample("a", 0, (("jpg", members[0]),))
    assert second == TarSample("b", 1000, (("jpg", members[1]), ("txt", members[2])))


def test_members_without_an_extension_are_counted_and_part_no_sample() -> None:
    ignored: Counter[str] = Counter()
    members = as_members("README", "a.jpg", ".hidden", "x/.b.jpg", "LICENSE", "a.txt", "x.y/z")
    (sample,) = samples_in(iter(members), ignored)
    assert [extension for extension, _ in sample.members] == ["jpg", "txt"]
    assert ignored == {"no extension": 3, "hidden (its name starts with a dot)": 2}
    assert list(samples_in(iter(as_members("README")), ignored)) == []


def test_a_sample_is_given_before_more_than_the_next_member_is_read() -> None:
    def endless() -> Iterator[Member]:
        yield from as_members("a.jpg", "a.txt", "b.jpg")
        raise AssertionError("read too far")

    with contextlib.closing(samples_in(endless(), Counter())) as samples:  # type: ignore[type-var]
        assert next(samples).key == "a"
