"""A record says what was committed, and one that does not add up is refused."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_schema import atomic
from cache_schema.errors import DamagedError
from cache_schema.json_file import seal
from cache_schema.records import (
    HASH_BYTES,
    Record,
    RowException,
    committed_parts,
    digests_of_beginnings,
    logical_digest,
    parts_by_numerics,
    read_record,
    record_of,
    row_hash,
)

RECORD = Record(
    part=2,
    num_rows=5,
    fingerprint="f" * 64,
    part_fingerprint="a" * 64,
    bad=(0, 4),
    exceptions=(RowException(1, "ok", "truncated: 93 tokens"), RowException(4, "feature-not-finite", "")),
    files={"shard": "1" * 64, "samples": "2" * 64, "rows": "3" * 64},
    chunk_crc32c=(0, 2**32 - 1),
    numerics="cpu",
    seconds={"forward": 0.25},
)


def write(path: Path, value: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.publish_json(path, seal(value))
    return path


def test_a_record_is_written_in_words_that_json_has_and_comes_back_the_same() -> None:
    spelt = json.loads(json.dumps(RECORD.to_json()))
    assert spelt["bad"] == [0, 4]
    assert spelt["exceptions"] == [[1, "ok", "truncated: 93 tokens"], [4, "feature-not-finite", ""]]
    assert spelt["chunk_crc32c"] == [0, 4294967295]
    assert record_of(spelt, "here") == RECORD
    assert RECORD.num_ok == 3


def test_mixed_numerics_are_written_only_where_they_were_allowed() -> None:
    allowed = replace(RECORD, allow_mixed_numerics=True)
    assert "allow_mixed_numerics" not in RECORD.to_json()
    assert allowed.to_json()["allow_mixed_numerics"] is True
    assert record_of(allowed.to_json(), "here") == allowed


def test_a_record_without_seconds_is_whole(tmp_path: Path) -> None:
    value = RECORD.to_json()
    del value["seconds"]
    assert read_record(write(tmp_path / "00002.json", value)) == replace(RECORD, seconds={})


@pytest.mark.parametrize("name", ["part", "num_rows", "fingerprint", "bad", "exceptions", "files", "chunk_crc32c"])
def test_a_record_that_lacks_a_field_names_the_field_and_the_way_out(name: str) -> None:
    value = RECORD.to_json()
    del value[name]
    with pytest.raises(DamagedError, match=rf"^here is not a record \(.*{name}.*\): run `pipeline verify`"):
        record_of(value, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"bad": None},
        {"bad": ["0"]},
        {"bad": [0.5]},
        {"bad": [0.0]},
        {"bad": [True]},
        {"part": 2.0},
        {"part": True},
        {"numerics": 1},
        {"files": []},
        {"chunk_crc32c": ["0"]},
        {"exceptions": [["1", "ok", ""]]},
        {"exceptions": [[True, "ok", ""]]},
        {"exceptions": [[1, 2, ""]]},
        {"num_rows": "5"},
        {"chunk_crc32c": 7},
        {"exceptions": [[1, "ok"]]},
        {"exceptions": [[1, "ok", "", ""]]},
    ],
    ids=str,
)
def test_a_record_with_a_field_too_many_or_of_another_type_is_refused(change: dict) -> None:
    with pytest.raises(DamagedError, match="is not a record"):
        record_of({**RECORD.to_json(), **change}, "here")


@pytest.mark.parametrize("bad", [[5], [-1], [2**63], [4, 0], [3, 3]], ids=str)
def test_bad_rows_outside_the_part_out_of_order_or_twice_are_refused(bad: list[int]) -> None:
    with pytest.raises(DamagedError, match="here names bad rows outside its part: run `pipeline verify`"):
        record_of({**RECORD.to_json(), "bad": bad}, "here")


@pytest.mark.parametrize("offsets", [[5], [-1], [2, 1], [1, 1]], ids=str)
def test_exceptions_outside_the_part_out_of_order_or_twice_are_refused(offsets: list[int]) -> None:
    exceptions = [[offset, "ok", "truncated: 93 tokens"] for offset in offsets]
    with pytest.raises(DamagedError, match="here names exceptions outside its part: run `pipeline verify`"):
        record_of({**RECORD.to_json(), "exceptions": exceptions}, "here")


@pytest.mark.parametrize("name", ["shard", "samples", "rows"])
def test_a_record_that_names_no_file_of_a_kind_is_refused(name: str) -> None:
    files = {kind: sha256 for kind, sha256 in RECORD.files.items() if kind != name}
    with pytest.raises(DamagedError, match=f"here names no file of {name}: run `pipeline verify`"):
        record_of({**RECORD.to_json(), "files": files}, "here")


@pytest.mark.parametrize("bad", [[], [0], [4], [0, 1, 2, 3, 4]], ids=str)
def test_no_row_the_first_the_last_and_all_rows_may_be_bad(bad: list[int]) -> None:
    assert record_of({**RECORD.to_json(), "bad": bad}, "here").num_ok == 5 - len(bad)


def test_a_record_under_the_name_of_another_part_is_refused(tmp_path: Path) -> None:
    assert read_record(write(tmp_path / "00002.json", RECORD.to_json())) == RECORD
    moved = write(tmp_path / "00003.json", RECORD.to_json())
    with pytest.raises(DamagedError, match=r"00003\.json is the record of part 2: run `pipeline verify`"):
        read_record(moved)


def test_a_missing_or_unsealed_record_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"00000\.json is missing"):
        read_record(tmp_path / "00000.json")
    path = tmp_path / "00002.json"
    path.write_text(json.dumps(RECORD.to_json()))
    with pytest.raises(DamagedError, match="is not a sealed JSON object"):
        read_record(path)


def test_committed_parts_are_counted_up_and_everything_else_in_the_folder_is_overlooked(tmp_path: Path) -> None:
    names = ["00010.json", "00002.json", "123456.json", "00002.rows", "7.json", "0001a.json", "00004.json.bak"]
    for name in [*names, ".00005.json.1-ab.partial", "plan.json", "00006.views"]:
        (tmp_path / name).write_bytes(b"")
    assert committed_parts(tmp_path) == [2, 10, 123456]


def test_no_folder_an_empty_one_and_a_file_hold_no_parts(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert [committed_parts(tmp_path / name) for name in ("none", "empty", "file")] == [[], [], []]


def test_parts_are_counted_by_their_numerics_in_the_order_of_the_names() -> None:
    records = [replace(RECORD, numerics=name) for name in ("cuda sm90", "cpu", "cuda sm90")]
    assert list(parts_by_numerics(records).items()) == [("cpu", 1), ("cuda sm90", 2)]
    assert parts_by_numerics([]) == {}


def test_the_hash_of_a_row_is_blake2b_over_its_fields_each_after_its_length() -> None:
    fields = ["größe/雪.jpg".encode(), b"ok", b"tiny", bytes(range(16)), b"\x00\x3c" * 8]
    spelt = b"".join(struct.pack("<Q", len(value)) + value for value in fields)
    expected = hashlib.blake2b(spelt, digest_size=16).digest()
    assert row_hash("größe/雪.jpg", "ok", "tiny", bytes(range(16)), b"\x00\x3c" * 8) == expected
    assert len(expected) == HASH_BYTES


def test_a_row_whose_bytes_could_not_be_read_hashes_as_one_with_an_empty_digest() -> None:
    expected = hashlib.blake2b(struct.pack("<Q", 0) * 5, digest_size=16).digest()
    assert row_hash("", "", "", None, b"") == row_hash("", "", "", b"", b"") == expected


@given(st.text(max_size=6), st.integers(0, 6))
def test_a_letter_that_moves_to_the_next_field_makes_another_hash(letters: str, at: int) -> None:
    at = min(at, len(letters))
    moved = row_hash(letters[:at], letters[at:], "", None, b"")
    assert (moved == row_hash(letters, "", "", None, b"")) == (at == len(letters))


def test_the_logical_digest_is_sha256_over_all_row_hashes_however_they_are_cut() -> None:
    hashes = bytes(range(64))
    expected = hashlib.sha256(hashes).hexdigest()
    assert logical_digest([hashes]) == logical_digest([hashes[:16], b"", hashes[16:]]) == expected
    assert logical_digest([]) == hashlib.sha256().hexdigest()


def test_the_digests_of_the_beginnings_end_with_that_of_the_whole() -> None:
    parts = [b"a" * 16, b"b" * 32, b"c" * 16]
    expected = [hashlib.sha256(b"".join(parts[: n + 1])).hexdigest() for n in range(3)]
    assert list(digests_of_beginnings(parts)) == expected
    assert list(digests_of_beginnings([])) == []
