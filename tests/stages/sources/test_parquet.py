"""Parquet: which columns are images or sentences, keys, and files that are not what they must be."""

import contextlib
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.files.keys import hash_of_key
from stages.sources.parquet import ParquetSource
from tests.corpora.pictures import encoded, jpeg, noise
from tests.corpora.samples import samples_of

IMAGES = [jpeg(8, 8, number) for number in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.parquet"


def source_of(path: Path, modality: Modality = "image", **options: str) -> ParquetSource:
    return ParquetSource(str(path), modality, options)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_image_bytes_are_read_in_order(kind: pa.DataType, path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array(IMAGES, kind)}), path, row_group_size=2)
    samples = samples_of(source_of(path))
    assert [sample.payload for sample in samples] == IMAGES
    assert [sample.key for sample in samples] == ["0", "1", "2", "3", "4"]


def test_a_struct_of_bytes_and_path_is_an_image_column(path: Path) -> None:
    png = encoded(noise(8, 8), "PNG")
    records = [
        {"bytes": IMAGES[0], "path": "a.jpg"},
        {"bytes": png, "path": "b.jpg"},
        None,
        {"bytes": None, "path": None},
    ]
    pq.write_table(pa.table({"image": records}), path)
    found = [(sample.payload, sample.status, sample.reason) for sample in samples_of(source_of(path))]
    assert found == [
        (IMAGES[0], "ok", ""),
        (png, "ok", "misnamed"),
        (None, "src-no-image", "null"),
        (None, "src-no-image", "null"),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_sentences_are_read_and_nulls_keep_their_rows(kind: pa.DataType, path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", None, "", "b\nc"]).cast(kind)}), path)
    found = [(sample.payload, sample.status) for sample in samples_of(source_of(path, "text"))]
    assert found == [(b"a", "ok"), (None, "text-type"), (b"", "ok"), (b"b\nc", "ok")]


def test_a_missing_or_unfit_column_is_refused_listing_the_found_ones(path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"], "score": [0.5], "url": ["x"]}), path)
    with pytest.raises(RefusedError, match=r"no column 'text' .*caption: string, score: double, url: string"):
        source_of(path, "text").scan()
    with pytest.raises(RefusedError, match=r"column 'score' is double, not text"):
        source_of(path, "text", column="score").scan()
    with pytest.raises(RefusedError, match=r"column 'caption' is string, not bytes"):
        source_of(path, "image", column="caption").scan()
    with pytest.raises(RefusedError, match=r"no column 'id'"):
        source_of(path, "text", column="caption", key_column="id").scan()
    with pytest.raises(RefusedError, match=r"key column 'score' is double"):
        source_of(path, "text", column="caption", key_column="score").scan()
    assert source_of(path, "text", column="caption").scan().num_samples == 1


def test_keys_come_from_the_key_column_and_must_be_there_once(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": [7, 8, 9]}), path, row_group_size=1)
    source = source_of(path, "text", key_column="id")
    assert [sample.key for sample in samples_of(source)] == ["7", "8", "9"]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": ["x", "y", "x"]}), path, row_group_size=1)
    with pytest.raises(RefusedError, match=r"key 'x' stands in row 0 and again in row 2"):
        source_of(path, "text", key_column="id").scan()
    pq.write_table(pa.table({"text": ["a", "b"], "id": ["x", None]}), path)
    with pytest.raises(RefusedError, match=r"row 1 has no key"):
        source_of(path, "text", key_column="id").scan()


def test_what_is_no_whole_parquet_file_is_refused(path: Path) -> None:
    table = pa.table({"text": ["a"] * 100})
    pq.write_table(table, path)
    whole = path.read_bytes()
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(DamagedError, match="not a Parquet file"):
        source_of(path, "text").scan()
    for size in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError):
            source_of(path, "text").scan()
    footer_bytes = int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(whole[: -8 - footer_bytes] + b"\xff" * footer_bytes + whole[-8:])
    with pytest.raises(DamagedError):
        source_of(path, "text").scan()


def test_damaged_pages_are_refused_when_read(path: Path) -> None:
    pq.write_table(pa.table({"text": [f"sentence {number}" for number in range(1000)]}), path, compression="snappy")
    source = source_of(path, "text")
    scan = source.scan()
    damaged = bytearray(path.read_bytes())
    damaged[60:200] = b"\xff" * 140
    path.write_bytes(damaged)
    with pytest.raises(DamagedError, match="damaged"):
        list(source.read(0, scan.num_samples, 0))


@pytest.mark.parametrize("column", [pa.array([], pa.string()), pa.nulls(0)])
def test_a_table_without_rows_has_no_samples_whatever_its_columns(column: pa.Array, path: Path) -> None:
    pq.write_table(pa.table({"other": column}), path)
    assert source_of(path, "text").scan().num_samples == 0
    path.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"is empty \(0 bytes\)"):
        source_of(path, "text").scan()


def test_two_columns_of_one_name_are_refused_with_both_places_if_one_is_asked_for(path: Path) -> None:
    pq.write_table(pa.table([["a"], ["k"], ["b"], ["l"]], names=["text", "id", "text", "id"]), path)
    with pytest.raises(RefusedError, match=r"2 columns 'text', at places 1 and 3 of 4"):
        source_of(path, "text").scan()
    pq.write_table(pa.table([["a"], ["k"], ["l"]], names=["text", "id", "id"]), path)
    with pytest.raises(RefusedError, match=r"2 columns 'id', at places 2 and 3 of 3"):
        source_of(path, "text", key_column="id").scan()
    assert [sample.payload for sample in samples_of(source_of(path, "text"))] == [b"a"]


def of_extension_type(values: pa.Array, name: str) -> pa.Table:
    field = pa.field("other", values.type, metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": "boom"})
    return pa.table([["a"], values], schema=pa.schema([pa.field("text", pa.string()), field]))


@pytest.mark.parametrize("name", ["evil", "arrow.py_extension_type", "datasets.features.Array2D"])
def test_a_column_of_a_foreign_extension_type_hurts_only_when_it_is_asked_for(name: str, path: Path) -> None:
    pq.write_table(of_extension_type(pa.array(["x"]), name), path)
    assert [sample.payload for sample in samples_of(source_of(path, "text"))] == [b"a"]
    for options in ({"column": "other"}, {"key_column": "other"}):
        with pytest.raises(RefusedError, match=rf"column 'other' is of the extension type '{name}'.*plain column"):
            source_of(path, "text", **options).scan()


def test_extension_types_of_arrow_are_read_as_their_storage(path: Path) -> None:
    ids = [UUID(int=number) for number in (7, 8)]
    opaque = pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "image", "a database"), pa.array(IMAGES[:2]))
    columns = {
        "json": pa.array(['{"a": 1}', None], pa.json_()),
        "id": pa.array([one.bytes for one in ids], pa.uuid()),
        "opaque": opaque,
    }
    pq.write_table(pa.table(columns), path)
    found = [(sample.key, sample.payload) for sample in samples_of(source_of(path, "text", column="json"))]
    assert found == [("0", b'{"a": 1}'), ("1", None)]
    found = [(sample.key, sample.payload) for sample in samples_of(source_of(path, column="opaque", key_column="id"))]
    assert found == [(str(ids[0]), IMAGES[0]), (str(ids[1]), IMAGES[1])]
    with pytest.raises(RefusedError, match=r"column 'id' is fixed_size_binary\[16\], not text"):
        source_of(path, "text", column="id").scan()


class _Noisy(pa.ExtensionType):
    seen: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        super().__init__(pa.string(), "tests.noisy")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"hook"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "_Noisy":
        cls.seen.append(serialized)
        return cls()


def test_the_hook_of_a_registered_extension_type_is_not_called(path: Path) -> None:
    nested = pa.StructArray.from_arrays([pa.ExtensionArray.from_storage(_Noisy(), pa.array(["x"]))], ["inner"])
    pq.write_table(pa.table({"text": ["a"], "nested": nested}), path)
    pa.register_extension_type(_Noisy())
    try:
        assert [sample.payload for sample in samples_of(source_of(path, "text"))] == [b"a"]
        with pytest.raises(RefusedError, match=r"extension type 'tests\.noisy'"):
            source_of(path, "text", column="nested").scan()
        assert _Noisy.seen == []
        pq.read_schema(path)
        assert _Noisy.seen, "the file has what it takes to call the hook"
    finally:
        pa.unregister_extension_type("tests.noisy")


def test_forms_of_images_that_are_not_supported_are_refused(path: Path) -> None:
    for record in (
        {"image": {"bytes": IMAGES[0]}},
        {"data": IMAGES[0]},
        {"bytes": "text"},
        [IMAGES[0]],
        [{"bytes": IMAGES[0]}],
    ):
        pq.write_table(pa.table({"image": [record]}), path)
        with pytest.raises(RefusedError, match="not bytes, or a struct with a field 'bytes'"):
            source_of(path).scan()
    pq.write_table(pa.table({"image": [{"bytes": IMAGES[0], "path": 7}]}), path)
    assert [sample.payload for sample in samples_of(source_of(path))] == IMAGES[:1]


def test_text_that_is_not_utf_8_keeps_its_row_but_a_key_must_be(path: Path) -> None:
    broken = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken, "id": ["x", "y"]}), path)
    assert [sample.status for sample in samples_of(source_of(path, "text"))] == ["ok", "text-encoding"]
    with pytest.raises(DamagedError):
        source_of(path, "text", column="id", key_column="text").scan()


def test_paths_lead_to_images_below_the_root(path: Path) -> None:
    (path.parent / "in").mkdir()
    for number, image in enumerate(IMAGES):
        (path.parent / "in" / f"{number}.jpg").write_bytes(image)
    names = ["0.jpg", "3.jpg", None, "../table.parquet", "9.jpg", ""]
    pq.write_table(pa.table({"file": names, "n": [1.5] * 6}), path, row_group_size=2)
    source = source_of(path, path_column="file", root=str(path.parent / "in"))
    samples = samples_of(source)
    assert [(sample.status, sample.payload) for sample in samples] == [
        ("ok", IMAGES[0]),
        ("ok", IMAGES[3]),
        ("src-no-image", None),
        ("src-unreadable", None),
        ("src-unreadable", None),
        ("src-no-image", None),
    ]
    assert source.read_one("1", samples[1].offset_bytes, samples[1].size_bytes) == IMAGES[3]
    with pytest.raises(RefusedError, match=r"column 'n' is double, not text .*path_column=NAME"):
        source_of(path, path_column="n").scan()
    with pytest.raises(UsageError, match="drop one"):
        source_of(path, "text", path_column="file")


def test_an_image_without_bytes_is_the_file_at_its_path(path: Path) -> None:
    """As `datasets` writes images that were not embedded."""
    for folder, image in (("pics", IMAGES[1]), ("elsewhere/pics", IMAGES[2])):
        (path.parent / folder).mkdir(parents=True)
        (path.parent / folder / "1.jpg").write_bytes(image)
    records = [
        {"bytes": IMAGES[0], "path": "pics/1.jpg"},
        {"bytes": None, "path": "pics/1.jpg"},
        {"bytes": None, "path": "pics/2.jpg"},
        {"bytes": None, "path": "../table.parquet"},
        {"bytes": None, "path": ""},
        {"bytes": None, "path": None},
    ]
    pq.write_table(pa.table({"image": records}), path)
    for root, image in ((path.parent, IMAGES[1]), (path.parent / "elsewhere", IMAGES[2])):
        source = source_of(path) if root == path.parent else source_of(path, root=str(root))
        samples = samples_of(source)
        assert [(sample.payload, sample.status) for sample in samples] == [
            (IMAGES[0], "ok"),
            (image, "ok"),
            (None, "src-unreadable"),
            (None, "src-unreadable"),
            (None, "src-no-image"),
            (None, "src-no-image"),
        ]
        assert source.read_one("1", samples[1].offset_bytes, samples[1].size_bytes) == image
    with pytest.raises(UsageError, match="is not a folder"):
        source_of(path, root=str(path.parent / "nowhere")).scan()
    pq.write_table(pa.table({"image": IMAGES}), path)
    with pytest.raises(UsageError, match=r"root .* is for paths, but column 'image' has none"):
        source_of(path, root=str(path.parent)).scan()


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.binary()), pa.list_(pa.large_string())])
@pytest.mark.parametrize("row_group_size", [1, 2, 9])
def test_every_sentence_of_a_list_is_a_row(kind: pa.DataType, row_group_size: int, path: Path) -> None:
    captions = pa.array([["a", "b"], [], ["c", None, "d"], None, ["e"], [""]]).cast(kind)
    pq.write_table(pa.table({"text": captions, "id": [*"uvwxyz"]}), path, row_group_size=row_group_size)
    wanted = [
        ("0", b"a", "ok"),
        ("0#1", b"b", "ok"),
        ("1", None, "src-no-text"),
        ("2", b"c", "ok"),
        ("2#1", None, "text-type"),
        ("2#2", b"d", "ok"),
        ("3", None, "text-type"),
        ("4", b"e", "ok"),
        ("5", b"", "ok"),
    ]
    source = source_of(path, "text")
    assert source.scan().num_samples == len(wanted)
    for first in range(len(wanted)):
        for end in range(first, len(wanted)):
            samples = source.read(first, end - first, first)
            assert [(one.key, one.payload, one.status) for one in samples] == wanted[first:end]
    assert source.read_one("2#2", 5, 1) == b"d"
    with pytest.raises(MismatchError, match="has 9 rows, the plan needs 10"):
        list(source.read(0, 10))
    keyed = source_of(path, "text", key_column="id")
    assert [hash_of_key(one.key) for one in samples_of(keyed)] == keyed.scan().key_hashes.tolist()
    assert [one.key for one in keyed.read(3, 3)] == ["w", "w#1", "w#2"]


def test_a_key_that_a_list_makes_must_be_the_only_one(path: Path) -> None:
    pq.write_table(pa.table({"text": [["a", "b"], ["c"]], "id": ["u", "u#1"]}), path)
    with pytest.raises(RefusedError, match=r"key 'u#1' stands in row 1 and again in row 2"):
        source_of(path, "text", key_column="id").scan()


def test_bytes_are_text_where_text_is_asked_for(path: Path) -> None:
    (path.parent / "ä.jpg").write_bytes(IMAGES[0])
    pq.write_table(pa.table({"text": ["ä.jpg".encode(), b"\xff", None, b""]}), path)
    found = [(sample.payload, sample.status) for sample in samples_of(source_of(path, "text"))]
    assert found == [("ä.jpg".encode(), "ok"), (None, "text-encoding"), (None, "text-type"), (b"", "ok")]
    found = [(sample.payload, sample.status) for sample in samples_of(source_of(path, path_column="text"))]
    assert found[:3] == [(IMAGES[0], "ok"), (None, "src-unreadable"), (None, "src-no-image")]


def test_a_page_whose_checksum_is_wrong_is_refused_though_it_can_be_decoded(path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["a sentence", "another"]}),
        path,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
        write_statistics=False,
    )
    assert [sample.payload for sample in samples_of(source_of(path, "text"))] == [b"a sentence", b"another"]
    path.write_bytes(path.read_bytes().replace(b"a sentence", b"A sentence"))
    with pytest.raises(DamagedError, match="damaged"):
        samples_of(source_of(path, "text"))


def test_a_key_that_is_empty_is_refused(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "id": ["x", ""]}), path)
    with pytest.raises(RefusedError, match=r"row 1 has no key"):
        source_of(path, "text", key_column="id").scan()


def test_any_row_is_read_alone_whatever_kind_of_column_it_is_in(path: Path) -> None:
    (path.parent / "a.jpg").write_bytes(IMAGES[0])
    images = [{"bytes": IMAGES[number % 5], "path": "a.png"} for number in range(40)]
    images[7], images[8] = {"bytes": None, "path": "a.jpg"}, None
    sentences = [f"sentence {number}" for number in range(40)]
    columns = {
        "image": pa.array(images),
        "text": pa.array(sentences),
        "path": ["a.jpg"] * 40,
        "lists": [[sentence, "again"] for sentence in sentences],
    }
    pq.write_table(pa.table(columns), path, row_group_size=13, data_page_size=100, write_batch_size=2)
    for source in (
        source_of(path),
        source_of(path, path_column="path"),
        source_of(path, "text"),
        source_of(path, "text", column="lists"),
    ):
        samples = samples_of(source)
        assert len(samples) in (40, 80)
        for sample in (*samples[::-3], *samples):
            if sample.payload is not None:
                assert source.read_one(sample.key, sample.offset_bytes, sample.size_bytes) == sample.payload
            else:
                with pytest.raises(MismatchError, match="is not the planned one"):
                    source.read_one(sample.key, sample.offset_bytes, 1)
        with pytest.raises(MismatchError, match="is not the planned one"):
            source.read_one("80", 80, 1)


def test_a_file_that_shrinks_between_two_rows_is_read_anew(path: Path) -> None:
    pq.write_table(pa.table({"image": IMAGES}), path, row_group_size=1)
    source = source_of(path)
    assert source.read_one("0", 0, len(IMAGES[0])) == IMAGES[0]
    pq.write_table(pa.table({"image": IMAGES[:2]}), path, row_group_size=1)
    assert source.read_one("1", 1, len(IMAGES[1])) == IMAGES[1]
    with pytest.raises(MismatchError, match="is not the planned one"):
        source.read_one("3", 3, len(IMAGES[3]))


def test_no_flipped_bit_in_a_footer_ends_the_process(path: Path) -> None:
    """pyarrow 26.0.1 aborts where it is asked for a column whose chunk is damaged."""
    table = pa.table({"image": IMAGES[:2], "text": [["a", "b"], ["c"]]})
    pq.write_table(table, path, store_schema=False)
    whole = path.read_bytes()
    first = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(first, len(whole) - 8):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with contextlib.suppress(RefusedError):
            source_of(path, "text").scan()
        with contextlib.suppress(RefusedError):
            source_of(path).read_one("0", 0, len(IMAGES[0]))
