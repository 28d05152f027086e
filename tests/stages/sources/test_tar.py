"""Tars: the samples that GNU tar and tarfile write, and every way a tar can be damaged."""

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from stages.sources import base as source_base
from stages.sources.tar import TarSource
from tests.corpora.pictures import encoded, jpeg, noise
from tests.corpora.samples import samples_of
from tests.corpora.webdataset import write_tar

IMAGE = jpeg(16, 12)


def source_of(path: Path) -> TarSource:
    return TarSource(str(path), "image", {})


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", [(f"{number}.jpg", jpeg(30, 30, number)) for number in range(3)])


def test_members_that_share_a_name_up_to_its_first_dot_are_one_sample(tmp_path: Path) -> None:
    members = [
        ("d.1/a.b.json", b"{}"),
        ("d.1/a.jpg", IMAGE),
        ("d.1/a.png", b"second image"),
        ("b.PNG", b"upper case"),
        ("c.txt", b"no image"),
        ("README", b"no dot"),
        (".hidden.jpg", IMAGE),
        ("e.mask.png", b"not an image extension"),
        ("f.pkl", b"never opened"),
        ("f.jpg", IMAGE),
    ]
    samples = samples_of(source_of(write_tar(tmp_path / "a.tar", members)))
    assert [(sample.key, sample.payload, sample.status) for sample in samples] == [
        ("d.1/a", IMAGE, "ok"),
        ("b", b"upper case", "ok"),
        ("c", None, "src-no-image"),
        ("e", None, "src-no-image"),
        ("f", IMAGE, "ok"),
    ]
    ignored = source_of(tmp_path / "a.tar").scan().ignored
    assert ignored == {
        ".b.json": 1,
        "second image": 1,
        ".txt": 1,
        "no extension": 1,
        "hidden (its name starts with a dot)": 1,
        "image with dots in its name": 1,
        ".pkl": 1,
    }


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_long_and_foreign_names_are_read_as_written(tar_format: int, tmp_path: Path) -> None:
    keys = ["x" * 200 + "/" + "y" * 150, "d\u00e9/\u56fe\u50cf", "plain"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as tar:
        for key in keys:
            tar.addfile(member(f"{key}.jpg", len(IMAGE)), io.BytesIO(IMAGE))
    source = source_of(tmp_path / "a.tar")
    scan = source.scan()
    assert [sample.key for sample in source.read(0, 3, scan.offset_bytes(0))] == keys
    assert [sample.key for sample in source.read(1, 1, scan.offset_bytes(1))] == keys[1:2]


def test_ustar_prefixes_and_tars_of_gnu_tar_are_read(tmp_path: Path) -> None:
    name = f"{'p' * 90}/{'q' * 60}/a.jpg"
    with tarfile.open(tmp_path / "ustar.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(member(name, len(IMAGE)), io.BytesIO(IMAGE))
    assert samples_of(source_of(tmp_path / "ustar.tar"))[0].key == name.removesuffix(".jpg")
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(IMAGE)
    os.symlink("0.jpg", tmp_path / "in" / "9.jpg")
    subprocess.run(["tar", "-cf", tmp_path / "gnu.tar", "--sort=name", "-C", tmp_path, "in"], check=True)
    samples = samples_of(source_of(tmp_path / "gnu.tar"))
    pictures = [(f"in/{number}", IMAGE, "") for number in range(3)]
    assert [(sample.key, sample.payload, sample.reason) for sample in samples] == [
        *pictures,
        ("in/9", None, "only a symbolic link"),
    ]


def test_a_picture_under_a_wrong_extension_is_ok_and_noted(tmp_path: Path) -> None:
    png = encoded(noise(8, 8), "PNG")
    (sample,) = samples_of(source_of(write_tar(tmp_path / "a.tar", [("a.jpg", png)])))
    assert (sample.status, sample.reason, sample.payload) == ("ok", "misnamed", png)


@pytest.mark.parametrize("where", ["payload", "header", "between members", "end mark", "half of the end mark"])
def test_a_cut_tar_is_refused_naming_tar_and_offset(where: str, tar: Path) -> None:
    whole = tar.read_bytes()
    with tarfile.open(tar) as reader:
        last = reader.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    cut = {
        "payload": last.offset_data + last.size // 2,
        "header": last.offset + 100,
        "between members": last.offset,
        "end mark": end,
        "half of the end mark": end + 512,
    }[where]
    tar.write_bytes(whole[:cut])
    with pytest.raises(DamagedError, match=rf"{tar}.* at offset [\d,]+"):
        source_of(tar).scan()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (gzip.compress(b"x" * 10_000), "compressed with gzip"),
        (b"<html>" + b" " * 2000, "not a tar"),
        (b"\x89PNG\r\n" + b"\x01" * 2000, "not a tar"),
    ],
    ids=["empty", "gzip", "html", "png"],
)
def test_what_is_no_tar_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DamagedError, match=words):
        source_of(tmp_path / "a.tar").scan()


@pytest.mark.parametrize("num_bytes", [1024, 10240])
def test_a_tar_that_is_only_an_end_mark_is_an_empty_shard(num_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "padding.tar").write_bytes(bytes(num_bytes))
    for modality in ("image", "text"):
        scan = TarSource(str(tmp_path / "padding.tar"), modality, {}).scan()
        assert scan.num_samples == len(scan.offsets) == len(scan.key_hashes) == 0 and not scan.ignored
    with tarfile.open(tmp_path / "written.tar", "w"):
        pass
    assert source_of(tmp_path / "written.tar").scan().num_samples == 0


@pytest.mark.parametrize("num_bytes", [512, 10752, 1 << 20])
def test_zeros_that_no_writer_ends_a_tar_with_are_no_empty_shard(num_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "zeros.tar"
    path.write_bytes(bytes(num_bytes))
    with pytest.raises(DamagedError, match=r"it is cut|ends in [\d,]+ zero bytes"):
        source_of(path).scan()
    if num_bytes > 512:
        assert TarSource(str(path), "image", {"zeros": "ok"}).scan().num_samples == 0


def test_a_preallocated_download_that_was_cut_between_members_is_refused_unless_told(tar: Path) -> None:
    whole = source_of(tar).scan()
    with open(tar, "ab") as file:
        file.write(bytes(50_000))
    with pytest.raises(DamagedError, match=r"a\.tar ends in [\d,]+ zero bytes.*\?zeros=ok"):
        source_of(tar).scan()
    allowed = TarSource(str(tar), "image", {"zeros": "ok"})
    assert len(samples_of(allowed)) == 3 and allowed.scan().fingerprint == whole.fingerprint
    with pytest.raises(UsageError, match="known: ok"):
        TarSource(str(tar), "image", {"zeros": "yes"})


def test_a_tar_whose_members_are_no_images_is_a_usage_error_and_no_empty_shard(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no images .*\.txt"):
        source_of(write_tar(tmp_path / "texts.tar", [("a.txt", b"x")])).scan()
    with pytest.raises(UsageError, match=r"no images .*no extension"):
        source_of(write_tar(tmp_path / "hashes.tar", [("0a1b2c", IMAGE)])).scan()


def test_dots_in_the_names_of_images_are_counted_in_one_word(tmp_path: Path) -> None:
    members = [("a.jpg", IMAGE), *((f"shot 2.{number} (clean).jpg", IMAGE) for number in range(200))]
    source = source_of(write_tar(tmp_path / "a.tar", members))
    assert source.scan().ignored == {"image with dots in its name": 200}
    texts = [(f"shot 2.{number} (clean).txt", b"x") for number in range(9)]
    members = [("a.jpg", IMAGE), *texts, ("b.url.txt", b"x"), ("b.jpg", IMAGE)]
    source = source_of(write_tar(tmp_path / "texts.tar", members))
    assert source.scan().ignored == {".txt with dots in its name": 9, ".url.txt": 1}
    only = write_tar(tmp_path / "only.tar", [("shot 2.1.jpg", IMAGE)])
    with pytest.raises(UsageError, match=r"found image with dots in its name.*\?images=all takes those"):
        source_of(only).scan()
    names = [(f"{number}.x{number}", b"") for number in range(100)]
    assert len(source_of(write_tar(tmp_path / "b.tar", [("a.jpg", IMAGE), *names])).scan().ignored) <= 41


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = member(name, 0)
    info.type, info.linkname = kind, "a.jpg"
    return info


def test_a_link_that_stands_for_an_image_is_a_row_and_others_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(member("a.jpg", len(IMAGE)), io.BytesIO(IMAGE))
        for info in (link("a.png", tarfile.SYMTYPE), link("b.jpg", tarfile.LNKTYPE), link("c.jpg", tarfile.SYMTYPE)):
            tar.addfile(info)
        tar.addfile(member("c.txt", 1), io.BytesIO(b"x"))
        tar.addfile(link("d.txt", tarfile.SYMTYPE))
        tar.addfile(link("e.jpg", tarfile.SYMTYPE))
        tar.addfile(member("e.png", len(IMAGE)), io.BytesIO(IMAGE))
    source = source_of(tmp_path / "a.tar")
    assert [(sample.key, sample.payload, sample.status, sample.reason) for sample in samples_of(source)] == [
        ("a", IMAGE, "ok", ""),
        ("b", None, "src-no-image", "only a hard link"),
        ("c", None, "src-no-image", "only a symbolic link"),
        ("e", IMAGE, "ok", "misnamed"),
    ]
    assert source.scan().ignored == {"symbolic link": 3, ".txt": 1}
    with tarfile.open(tmp_path / "a.tar") as tar:
        place = tar.getmember("b.jpg").offset
    with pytest.raises(MismatchError, match=r"an earlier version.*'b', or none for a link"):
        list(source.read(1, 1, place))
    assert [(sample.key, sample.status) for sample in samples_of(TarSource(source.uri, "text", {}))] == [
        ("a", "src-no-text"),
        ("c", "ok"),
        ("d", "src-no-text"),
        ("e", "src-no-text"),
    ]


def test_a_claim_of_ten_gigabytes_is_refused_without_an_allocation(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(member("a.jpg", 10 << 30).tobuf(tarfile.GNU_FORMAT) + bytes(100))
    with pytest.raises(DamagedError, match=r"claims 10,737,418,240 bytes"):
        source_of(tmp_path / "a.tar").scan()


def test_a_damaged_header_is_refused_naming_its_offset(tar: Path) -> None:
    with tarfile.open(tar) as reader:
        second = reader.getmembers()[1].offset
    damaged = bytearray(tar.read_bytes())
    damaged[second + 3] ^= 1
    tar.write_bytes(damaged)
    with pytest.raises(DamagedError, match=f"offset {second:,}"):
        source_of(tar).scan()


def test_a_second_tar_behind_the_end_mark_is_refused(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes() * 2)
    with pytest.raises(DamagedError, match="goes on after its end mark"):
        source_of(tar).scan()


@pytest.mark.parametrize(
    "names",
    [["a.jpg", "b.jpg", "a.jpg"], ["a.jpg", "b.jpg", "a.txt"], ["a.jpg", "a.jpg"], ["d/a.jpg", "b.jpg", "d/a.jpg"]],
    ids=["duplicate", "interleaved", "same member twice", "in a folder"],
)
def test_a_key_that_comes_back_is_refused_with_both_places(names: list[str], tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [(name, IMAGE) for name in names])
    with tarfile.open(tar) as reader:
        offsets = [found.offset for found in reader.getmembers()]
    with pytest.raises(RefusedError) as caught:
        source_of(tar).scan()
    message = str(caught.value)
    assert names[0].removesuffix(".jpg") in message and str(tar) in message
    assert f"offset {offsets[0]:,} and again at {offsets[-1]:,}" in message


def test_a_tar_that_shrinks_after_its_scan_is_refused_when_read(tar: Path) -> None:
    source = source_of(tar)
    scan = source.scan()
    with open(tar, "r+b") as file:
        file.truncate(700)
    with pytest.raises(DamagedError):
        list(source.read(0, 3, scan.offset_bytes(0)))


def test_a_member_larger_than_the_limit_keeps_its_row_unread(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.sources.tar.MAX_PAYLOAD_BYTES", 10)
    assert source_base.MAX_PAYLOAD_BYTES > 10
    assert {(sample.status, sample.payload) for sample in samples_of(source_of(tar))} == {("img-too-many-bytes", None)}


def test_names_that_are_not_utf_8_stay_different(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("\xe9.jpg", "\xe8.jpg"):
            tar.addfile(member(name, len(IMAGE)), io.BytesIO(IMAGE))
    assert [sample.key for sample in samples_of(source_of(tmp_path / "a.tar"))] == ["\\xe9", "\\xe8"]


def member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info
