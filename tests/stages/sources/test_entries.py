"""Entries of text files: keys, limits and options that JSON lines and CSV share."""

import base64
import json
from pathlib import Path

import pytest

from cache_schema.errors import MismatchError, RefusedError, UsageError
from stages.files.lines import MAX_LINE_BYTES
from stages.sources import base as source_base
from stages.sources import entries
from stages.sources.csv import CsvSource
from stages.sources.entries import EntrySource, resolve_root, without_signature
from stages.sources.jsonl import JsonlSource
from tests.corpora.samples import samples_of

JPEG = b"\xff\xd8\xff any bytes"


def lines_of(path: Path, *values: object, modality: source_base.Modality = "text", **options: str) -> JsonlSource:
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
    return JsonlSource(str(path), modality, options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


@pytest.mark.parametrize(("num_broken", "num_lines"), [(1, 100), (2, 200), (1, 99), (3, 299)])
def test_one_broken_entry_in_a_hundred_is_allowed_and_no_more(num_broken: int, num_lines: int, path: Path) -> None:
    good: list[object] = [{"text": "a"}] * (num_lines - num_broken)
    source = lines_of(path, *good, *["{"] * num_broken)
    if num_broken * 100 <= num_lines:
        assert source.scan().num_samples == num_lines
        assert [sample.status for sample in samples_of(source)].count("text-json") == num_broken
    else:
        said = (
            rf"{num_broken} of {num_lines} lines are broken, the first in line {len(good) + 1} \(not JSON\): .*mend it"
        )
        with pytest.raises(RefusedError, match=said):
            source.scan()


@pytest.mark.parametrize(
    ("key", "expected"),
    [("a", "a"), (7, "7"), (-(10**30), f"-1{'0' * 30}"), (" ", " "), ("\ud800", "\\ud800"), ("é", "é")],
)
def test_a_key_is_text_or_a_whole_number_and_always_printable(key: object, expected: str, path: Path) -> None:
    (sample,) = samples_of(lines_of(path, {"text": "x", "id": key}, key_column="id"))
    assert sample.key == expected and sample.key.encode()


@pytest.mark.parametrize("key", [None, "", True, 1.5, ["a"], {"a": 1}])
def test_a_key_of_another_type_is_refused_with_the_place_of_its_entry(key: object, path: Path) -> None:
    source = lines_of(path, {"text": "x", "id": 1}, {"text": "y", "id": key}, key_column="id")
    said = r"column 'id' has no key at line 2 \(offset 23\), where text or a whole number must stand: fill it in, or"
    with pytest.raises(RefusedError, match=said):
        source.scan()


def test_the_number_seven_and_its_digits_are_one_key(path: Path) -> None:
    source = lines_of(path, {"text": "x", "id": 7}, {"text": "y", "id": 8}, {"text": "z", "id": "7"}, key_column="id")
    with pytest.raises(RefusedError, match=r"key '7' stands in line 1 and again in line 3: keys must be unique"):
        source.scan()


def test_entries_without_a_key_of_their_own_are_called_by_their_number(path: Path) -> None:
    source = lines_of(path, {"text": "x", "id": "1"}, "", {"text": "y", "id": "2"}, key_column="id")
    assert [sample.key for sample in samples_of(source)] == ["1", "#2", "2"]


def test_an_entry_may_have_one_mib_and_one_with_an_image_sixty_four(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (entries.MAX_IMAGE_ENTRY_BYTES, MAX_LINE_BYTES) == (64 << 20, 1 << 20)
    monkeypatch.setattr(entries, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(entries, "MAX_IMAGE_ENTRY_BYTES", 80)
    text, image = '{"text": "%s"}', '{"image": "%s"}'
    texts = lines_of(path, *(text % ("x" * (size - 12)) for size in (40, 41)))
    assert [(s.status, s.reason) for s in samples_of(texts)] == [("ok", ""), ("text-too-long", "over 40 bytes")]
    images = lines_of(path, *(image % ("QUJD" * num) for num in (16, 17)), modality="image")
    statuses = [(s.status, s.reason) for s in samples_of(images)]
    assert statuses == [("ok", ""), ("img-too-many-bytes", "over 80 bytes")]


@pytest.mark.parametrize("value", ["QUJ", "QU JD", "QUJD\u00e9", "data:image/png;base64,QUJD", "QU-_"], ids=ascii)
def test_base64_is_read_strictly(value: str, path: Path) -> None:
    good = base64.b64encode(JPEG).decode()
    bad, fine = samples_of(lines_of(path, {"image": value}, {"image": f" {good}\n"}, modality="image"))
    assert (bad.status, bad.reason, bad.payload) == ("src-encoding", "not base64", None)
    assert (fine.status, fine.payload) == ("ok", JPEG)


def test_the_fingerprint_sees_the_bytes_the_columns_and_the_kind(path: Path) -> None:
    def fingerprint(text: str = "x", **options: str) -> str:
        return lines_of(path, {"text": text, "other": "y", "id": "1"}, **options).scan().fingerprint

    others = {fingerprint("z"), fingerprint(column="other"), fingerprint(key_column="id")}
    path.write_text("text\nx\n")
    others |= {CsvSource(str(path), "text", {}).scan().fingerprint}
    assert len(others | {fingerprint()}) == 5 and fingerprint() == fingerprint()


@pytest.mark.parametrize("content", ['{"text": "longer than it was"}\n', "\ufeff"], ids=["changed", "emptied"])
def test_an_entry_that_is_not_the_planned_one_is_named_with_what_is_there(content: str, path: Path) -> None:
    source = lines_of(path, {"text": "short"})
    (sample,) = samples_of(source)
    path.write_text(content)
    said = (
        rf"the line of '1' at offset 0 of {path} is not the planned one \((ok|nothing there)\): it or its image changed"
    )
    with pytest.raises(MismatchError, match=said):
        source.read_one(sample.key, sample.offset_bytes, sample.size_bytes)


def test_a_signature_is_cut_off_at_the_start_of_a_file_alone_and_once() -> None:
    assert without_signature(b"\xef\xbb\xbf{}\n", 0) == (b"{}\n", 3)
    assert without_signature(b"\xef\xbb\xbf\xef\xbb\xbf", 0) == (b"\xef\xbb\xbf", 3)
    assert without_signature(b"\xef\xbb\xbf{}\n", 9) == (b"\xef\xbb\xbf{}\n", 9)
    assert without_signature(b"\xef\xbb{}", 0) == (b"\xef\xbb{}", 0) and without_signature(b"", 0) == (b"", 0)


@pytest.mark.parametrize(
    ("modality", "options", "said"),
    [
        (
            "image",
            {"root": "/r"},
            r"root of source /d/a\.csv is for paths in a column: name it with path_column, or drop",
        ),
        ("text", {"path_column": "p"}, r"path_column of source /d/a\.csv is for images .*, but sentences stand in the"),
        ("image", {"path_column": "p", "column": "c"}, r"but column says where the bytes are: drop one"),
    ],
)
def test_options_that_do_not_go_together_are_said(modality: source_base.Modality, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_root("/d/a.csv", modality, options)


def test_the_root_of_paths_is_the_folder_of_the_table_unless_named_and_is_resolved_once(tmp_path: Path) -> None:
    named = {"path_column": "p", "root": f"{tmp_path}/x/.."}
    assert resolve_root("/d/a.csv", "image", named) == str(tmp_path) == named["root"]
    unnamed = {"path_column": "p"}
    assert resolve_root("/d/a.csv", "image", unnamed) == "/d" and unnamed == {"path_column": "p"}
    assert resolve_root("/d/a.csv", "image", {}) is None


def test_only_a_kind_of_entries_can_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        EntrySource("/a", "text", {})  # type: ignore[abstract]
