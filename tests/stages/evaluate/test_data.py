"""Labelled pictures in the CLIP_benchmark layout: read as they are, refused where they lie."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from cache_schema.errors import DamagedError, RefusedError, UsageError
from stages.evaluate.data import open_evaluation_set
from stages.sources import open_source
from tests.corpora.pictures import encoded
from tests.corpora.webdataset import write_tar


def _png(shade=0):
    return encoded(Image.new("RGB", (8, 8), (shade, shade, shade)), "PNG")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("cat\ndog, big\nfröhlich\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {}\n")
    return tmp_path


def test_pictures_come_with_their_labels_in_the_order_of_the_tars(data):
    write_tar(data / "test" / "0.tar", [("b.png", _png(1)), ("b.cls", b"2"), ("a.cls", b" 0\n"), ("a.png", _png(2))])
    write_tar(data / "test" / "1.tar", [("b.PNG", _png(3)), ("b.cls", b"1"), ("b.json", b"{}")])
    (data / "test" / "nshards.txt").write_text("2")
    found = open_evaluation_set(data)
    assert found.class_names == ("cat", "dog, big", "fröhlich")
    assert found.prompts()[1] == ["a dog, big.", "the dog, big"]
    pictures = list(found.pictures())
    assert [(picture.key, picture.label) for picture in pictures] == [("0/b", 2), ("0/a", 0), ("1/b", 1)]
    assert [picture.payload for picture in pictures] == [_png(1), _png(2), _png(3)]
    assert found.count_pictures() == 3


def test_without_nshards_all_tars_are_read_in_numeric_order(data):
    for number in (10, 2, 0):
        write_tar(data / "test" / f"{number}.tar", [("a.png", _png()), ("a.cls", b"0")])
    assert [picture.key for picture in open_evaluation_set(data).pictures()] == ["0/a", "2/a", "10/a"]


def test_labels_count_the_lines_of_class_names_empty_ones_too(data):
    (data / "classnames.txt").write_bytes(b"\xef\xbb\xbfnear {c}\r\n\r\nfar {}\r\nnear {c}\r\n")
    write_tar(data / "test" / "0.tar", [("a.png", _png()), ("a.cls", b"2")])
    found = open_evaluation_set(data)
    assert found.class_names == ("near {c}", "", "far {}", "near {c}")
    assert found.prompts()[:3] == [["a near {c}.", "the near {c}"], ["a .", "the "], ["a far {}.", "the far {}"]]
    assert [picture.label for picture in found.pictures()] == [2]
    assert [notice.split(" of ")[0] for notice in found.notices()] == ["labels 1", "several classes"]


def test_a_doubled_brace_in_a_template_is_a_brace(data):
    (data / "zeroshot_classification_templates.txt").write_text("{{c}} {c}, {}\n\n")
    write_tar(data / "test" / "0.tar", [])
    assert open_evaluation_set(data).prompts()[0] == ["{{c}} {c}, {}".format("cat", c="cat")]


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([("a.png", _png())], DamagedError, r"picture 'a\.png' in .*0\.tar has no label"),
        ([("a.png", _png()), ("a.fine.cls", b"0")], DamagedError, "picture 'a.png' .* has no label"),
        ([("a.png", _png()), ("a.cls", b"0"), ("b.cls", b"1"), ("b.json", b"{}")], DamagedError, "'b.cls' .* has no p"),
        ([("a.seg.png", _png()), ("a.cls", b"0")], DamagedError, "label 'a.cls' in .*0.tar has no picture"),
        ([("a.png", _png()), ("a.jpg", _png(1)), ("a.cls", b"0")], RefusedError, "2 pictures .a.png, a.jpg."),
        ([("a.png", _png()), ("a.PNG", _png(1)), ("a.cls", b"0")], RefusedError, "key 'a' comes twice"),
        ([("a.png", _png()), ("a.cls", b"0"), ("a.cls", b"1")], RefusedError, "key 'a' comes twice"),
    ],
)
def test_a_key_without_exactly_one_picture_and_one_label_is_refused_from_the_headers(data, members, error, message):
    write_tar(data / "test" / "0.tar", members)
    with pytest.raises(error, match=message):
        open_evaluation_set(data).count_pictures()


@pytest.mark.parametrize("linked", [{"b.png", "b.cls"}, {"b.png"}, {"b.cls"}])
@pytest.mark.parametrize(("kind", "word"), [(tarfile.LNKTYPE, "hard link"), (tarfile.SYMTYPE, "symbolic link")])
def test_a_picture_or_label_that_is_only_a_link_is_refused(data, linked, kind, word):
    """As tar writes a file of which it has seen another name."""
    with tarfile.open(data / "test" / "0.tar", "w") as tar:
        for name, payload in (("a.png", _png()), ("a.cls", b"0"), ("b.png", _png()), ("b.cls", b"0")):
            info = tarfile.TarInfo(name)
            if name in linked:
                info.type, info.linkname = kind, name.replace("b", "a")
                payload = b""
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    with pytest.raises(RefusedError, match=rf"'b\.(png|cls)' in .*0\.tar is only a {word}"):
        open_evaluation_set(data).count_pictures()


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (b"3", "'3'"),
        (b"cat", "'cat'"),
        (b"-1", "'-1'"),
        (b"1\n2\n", r"'1\\n2'"),
        (b"1.0", "'1.0'"),
        ("١".encode(), "'١'"),
        (b"", "''"),
        (b" " * 63 + b"12", "'1.'"),
    ],
)
def test_an_impossible_label_is_refused_by_its_key(data, label, shown):
    write_tar(data / "test" / "0.tar", [("a.png", _png()), ("a.cls", label)])
    with pytest.raises(DamagedError, match=rf"a\.cls in .*0\.tar holds {shown}, which is no label of the 3 classes"):
        list(open_evaluation_set(data).pictures())


@pytest.mark.parametrize("label", [b"2", b" 2\r\n", b"\xef\xbb\xbf2\n", b"002"])
def test_a_label_may_have_a_line_end_spaces_and_a_byte_order_mark(data, label):
    write_tar(data / "test" / "0.tar", [("a.png", _png()), ("a.cls", label)])
    assert [picture.label for picture in open_evaluation_set(data).pictures()] == [2]


def test_the_picture_of_a_sample_is_the_one_that_extract_takes(data):
    members = [("a.seg.png", _png(1)), ("a.png", _png(2)), ("a.json", b"{}"), ("a.cls", b"0"), ("README.md", b"")]
    tar = write_tar(data / "test" / "0.tar", members)
    found = open_evaluation_set(data)
    (picture,) = found.pictures()
    (raw, _) = open_source(str(tar), "tar", "image", {}).read(0, 2, 0)
    assert picture.payload == raw.payload == _png(2)
    assert found.count_pictures() == 1


def test_tars_without_a_picture_are_skipped_with_a_notice(data):
    write_tar(data / "test" / "0.tar", [])
    write_tar(data / "test" / "1.tar", [("a.png", _png()), ("a.cls", b"0")])
    write_tar(data / "test" / "2.tar", [("README.md", b"")])
    found = open_evaluation_set(data)
    assert [picture.key for picture in found.pictures()] == ["1/a"]
    assert found.notices() == [f"0.tar, 2.tar of the tars of {data} hold no picture and were skipped"]
    (data / "test" / "2.tar").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"2\.tar is empty \(0 bytes\)"):
        open_evaluation_set(data).count_pictures()


def test_a_key_that_comes_twice_is_refused_with_both_places(data):
    members = [
        ("a.png", _png(1)),
        ("a.cls", b"0"),
        ("b.png", _png(2)),
        ("b.cls", b"0"),
        ("a.png", _png(3)),
        ("a.cls", b"1"),
    ]
    write_tar(data / "test" / "0.tar", members)
    with pytest.raises(RefusedError, match=r"key 'a' comes twice in .*0\.tar, at offset 0 and again at 4,096"):
        open_evaluation_set(data).count_pictures()


def test_a_cut_tar_is_refused_and_not_taken_for_a_shorter_one(data):
    tar = write_tar(data / "test" / "0.tar", [(f"{i}.{kind}", b"0" * 600) for i in range(9) for kind in ("png", "cls")])
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(DamagedError, match=r"0\.tar"):
        open_evaluation_set(data).count_pictures()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "classnames.txt").unlink(), "has no classnames.txt"),
        (lambda data: (data / "classnames.txt").write_text("\n \n"), "classnames.txt is empty"),
        (lambda data: (data / "classnames.txt").write_bytes(b"\xff\xfe"), "is not UTF-8"),
        (
            lambda data: (data / "zeroshot_classification_templates.txt").write_text("a {c}\na photo"),
            "line 2 of .* is 'a photo', without a place for the class",
        ),
        (
            lambda data: (data / "zeroshot_classification_templates.txt").write_text("a {c}\n\na {c}"),
            "line 2 of .* is '', without a place for the class",
        ),
        (
            lambda data: (data / "zeroshot_classification_templates.txt").write_text("a {c} of {colour}"),
            "line 1 of .* with a place for something else than the class",
        ),
        (
            lambda data: (data / "zeroshot_classification_templates.txt").write_text("a {c} }"),
            "line 1 of .* with a brace that is not of a pair",
        ),
        (lambda data: (data / "zeroshot_classification_templates.txt").write_text("\n"), "templates.txt is empty"),
        (lambda data: (data / "dataset_type.txt").write_text("multilabel\n"), "dataset_type.txt says 'multilabel'"),
        (lambda data: None, "holds no tars"),
        (lambda data: (data / "test" / "nshards.txt").write_text("2"), r"lacks 0\.tar, 1\.tar of the 2 tars"),
        (lambda data: (data / "test" / "nshards.txt").write_text("many"), "holds 'many'"),
        (lambda data: (data / "test" / "nshards.txt").write_bytes(b"\xff1"), r"nshards\.txt is not UTF-8"),
    ],
)
def test_a_folder_that_lacks_a_part_of_the_layout_is_refused_by_its_name(data, change, message):
    change(data)
    with pytest.raises(UsageError, match=message):
        open_evaluation_set(data)
