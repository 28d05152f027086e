"""JSON lines: which member is the sentence or the image, what is broken, and which files are refused."""

import json
from base64 import b64encode
from pathlib import Path

import pytest

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.sources import expand
from stages.sources.jsonl import JsonlSource
from tests.corpora.pictures import jpeg
from tests.corpora.samples import rows_of, samples_of

GOOD = [json.dumps({"text": f"sentence {number}"}) for number in range(300)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def write(path: Path, lines: list[str] | list[bytes]) -> None:
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))


def source_of(path: Path, modality: Modality = "text", **options: str) -> JsonlSource:
    return JsonlSource(str(path), modality, options)


def test_sentences_are_strings_under_the_column_and_keys_are_line_numbers(path: Path) -> None:
    write(path, ['{"text": "a\\u00e9\\nb", "n": 1}', '{"n": {"text": "inside"}, "text": "\\u0000"}', '{"text": ""}'])
    found = rows_of(source_of(path))
    assert found == [("1", "a\u00e9\nb".encode(), "ok"), ("2", b"\0", "ok"), ("3", b"", "ok")]


def test_every_line_keeps_its_row_whatever_is_in_it(path: Path) -> None:
    bad = {
        '{"text": "cut': ("text-json", "not JSON"),
        '{"text": "a", "text": "b"}': ("text-json", "not JSON"),
        '["text"]': ("text-json", "not an object"),
        "": ("text-empty", "empty line"),
        '{"other": "x"}': ("text-type", "null"),
        '{"text": null}': ("text-type", "null"),
        '{"text": 3.5}': ("text-type", "not text"),
        '{"text": ["a"]}': ("text-type", "not text"),
        '{"text": "\\ud800"}': ("text-encoding", "half a surrogate pair"),
        '{"text": "' + "x" * (1 << 20) + '"}': ("text-too-long", "over 1048576 bytes"),
    }
    write(path, [*GOOD, *bad, *GOOD])
    samples = samples_of(source_of(path))
    assert [(sample.status, sample.reason) for sample in samples[300 : 300 + len(bad)]] == list(bad.values())
    assert [sample.payload for sample in samples[-300:]] == [json.loads(line)["text"].encode() for line in GOOD]


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "\xff"}',
        b'{"text": "a", "n": NaN}',
        b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
        b'{"text": ' + b"[" * 100_000 + b"}",
        b"\xef\xbb\xbf" + GOOD[0].encode(),
    ],
    ids=["not UTF-8", "NaN", "huge number", "nested deeply", "signature inside the file"],
)
def test_json_is_read_strictly_and_a_hostile_line_is_only_a_broken_one(line: bytes, path: Path) -> None:
    write(path, [*(good.encode() for good in GOOD), line])
    assert samples_of(source_of(path))[-1].status in ("text-json", "text-encoding")


def test_more_than_one_broken_line_in_a_hundred_is_refused_naming_the_first(path: Path) -> None:
    write(path, [*GOOD[:150], "broken", "broken", *GOOD[:30]])
    with pytest.raises(RefusedError, match=r"2 of 182 lines are broken, the first in line 151 \(not JSON\)"):
        source_of(path).scan()


def test_a_column_that_no_line_has_is_refused_listing_the_found_ones(path: Path) -> None:
    write(path, ['{"caption": "a", "score": 1}'] * 3)
    with pytest.raises(RefusedError, match=r"column 'text' has text in none .*caption: str, score: int"):
        source_of(path).scan()
    with pytest.raises(RefusedError, match="column 'score' has text in none"):
        source_of(path, column="score").scan()
    assert [sample.payload for sample in samples_of(source_of(path, column="caption"))] == [b"a"] * 3


def test_keys_come_from_the_key_column_and_must_be_there_once(path: Path) -> None:
    write(path, ['{"text": "a", "id": 7}', '{"text": "b", "id": "x"}', ""])
    assert [sample.key for sample in samples_of(source_of(path, key_column="id"))] == ["7", "x", "#3"]
    write(path, ['{"text": "a", "id": "x"}', '{"text": "b", "id": 1}', '{"text": "c", "id": "x"}'])
    with pytest.raises(RefusedError, match="key 'x' stands in line 1 and again in line 3"):
        source_of(path, key_column="id").scan()
    for missing in ('{"text": "b"}', '{"text": "b", "id": null}', '{"text": "b", "id": true}', '{"text":"b","id":""}'):
        write(path, ['{"text": "a", "id": "x"}', missing])
        with pytest.raises(RefusedError, match="column 'id' has no key at line 2"):
            source_of(path, key_column="id").scan()


def test_images_are_base64_and_what_is_not_keeps_its_row(path: Path) -> None:
    image = jpeg(8, 8)
    values = [b64encode(image).decode(), "no base64!", None, 5, ""]
    write(path, [json.dumps({"image": value}) for value in values])
    found = [(sample.payload, sample.status) for sample in samples_of(source_of(path, "image"))]
    assert found == [
        (image, "ok"),
        (None, "src-encoding"),
        (None, "src-no-image"),
        (None, "src-type"),
        (None, "src-no-image"),
    ]


def test_utf_16_and_nothing_at_all_are_refused(path: Path) -> None:
    path.write_bytes("\n".join(GOOD).encode("utf-16"))
    with pytest.raises(RefusedError, match="iconv"):
        source_of(path).scan()
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"lines\.jsonl is empty \(0 bytes\)"):
        source_of(path).scan()
    path.write_bytes(b"\xef\xbb\xbf")
    assert source_of(path).scan().num_samples == 0, "an empty shard, for a signature is no line"


@pytest.mark.parametrize("pieces", [(GOOD[0], GOOD[1]), ('{"text":', '"a"}')], ids=["lines", "inside"])
def test_a_carriage_return_without_a_line_feed_is_refused_with_its_line(pieces: tuple[str, str], path: Path) -> None:
    write(path, [GOOD[0] + "\r", "\r".join(pieces), GOOD[1]])
    with pytest.raises(RefusedError, match=r"a carriage return without a line feed in line 2 \(offset \d+\): .*tr"):
        source_of(path).scan()


def test_zeros_at_the_end_or_in_a_hole_are_a_download_that_was_cut(path: Path) -> None:
    whole = "\n".join(GOOD).encode()
    for cut in (len(whole), 5000):
        path.write_bytes(whole[:cut] + bytes(3000))
        with pytest.raises(
            DamagedError, match=rf"zero bytes stand in place of text from line \d+ \(offset {cut:,}\) on: .*fetch"
        ):
            source_of(path).scan()
    path.write_bytes(whole[:1000] + bytes(4096) + whole[5096:])
    with pytest.raises(DamagedError, match=r"zero bytes stand in place of text from line \d+ \(offset 1,000\)"):
        source_of(path).scan()


def test_a_signature_before_the_first_line_belongs_to_the_file(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(GOOD[:2]).encode())
    assert [sample.payload for sample in samples_of(source_of(path))] == [b"sentence 0", b"sentence 1"]


def test_a_changed_line_is_refused_when_it_is_read_again(path: Path) -> None:
    write(path, GOOD[:3])
    source = source_of(path)
    sample = samples_of(source)[1]
    write(path, [GOOD[0], '{"text": "shorter"}', GOOD[2]])
    with pytest.raises(MismatchError, match="changed; restore it"):
        source.read_one(sample.key, sample.offset_bytes, sample.size_bytes)


def test_options_that_do_not_go_together_are_usage_errors(path: Path) -> None:
    write(path, GOOD[:1])
    for options, modality, words in (
        ("root=/tmp", "image", "path_column"),
        ("path_column=a&column=b", "image", "drop one"),
        ("path_column=a", "text", "sentences stand in the file"),
    ):
        with pytest.raises(UsageError, match=words):
            expand(f"{path}?{options}", modality)  # type: ignore[arg-type]
