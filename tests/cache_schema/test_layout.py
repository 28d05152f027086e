"""Every file of a cache has one place, and no name can lead out of it."""

from pathlib import Path

import pytest

from cache_schema.errors import UsageError
from cache_schema.layout import MODALITIES, Layout, check_name, metadata_path, shard_path
from tests.corpora.tiny_cache import make_cache

LAYOUT = Layout(Path("/cache"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize("name", ["a", "0", "vit-l-14-openai.v0", "a_b.c-d", "a" * 80])
def test_a_name_of_small_letters_digits_dots_dashes_and_underscores_is_good(name: str) -> None:
    assert check_name(name, "array") == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "a" * 81, "a/b", "a\\b", "..", "a..b", ".hidden", "-flag", "_x", "a b", "a\n", "é", "a:b", "a\0", "a*"],
)
def test_a_name_that_could_leave_the_folder_or_differ_between_systems_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_name(name, "selection")
    assert str(refused.value).startswith(f"{name!r} cannot name a selection: use up to 80 lower-case letters")


def test_a_finished_cache_consists_of_the_files_that_are_promised(tmp_path: Path) -> None:
    root = make_cache(tmp_path / "cache", num_images=3, num_texts=0, part_rows=2).path
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
        "cache.json",
        "image/plan.json",
        "image/samples/00000.parquet",
        "image/samples/00001.parquet",
        "image/features.zarr/zarr.json",
        "image/features.zarr/imaginary.v0/zarr.json",
        "image/features.zarr/imaginary.v0/c/0/0",
        "image/features.zarr/imaginary.v0/c/1/0",
        "image/arrays/imaginary.v0/recipe.json",
        "image/arrays/imaginary.v0/records/00000.json",
        "image/arrays/imaginary.v0/records/00000.rows",
        "image/arrays/imaginary.v0/records/00001.json",
        "image/arrays/imaginary.v0/records/00001.rows",
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (LAYOUT.lock_json, "lock.json"),
        (LAYOUT.modality("text"), "text"),
        (LAYOUT.pixels_json, "image/pixels.json"),
        (LAYOUT.pixels(7), "image/pixels/00007.arrow"),
        (LAYOUT.pixels_record(123456), "image/pixels/123456.json"),
        (LAYOUT.probes("text", "a.v0"), "text/arrays/a.v0/probes.npz"),
        (LAYOUT.view_checks("image", "a.v1", 12), "image/arrays/a.v1/records/00012.views"),
        (LAYOUT.index("image", "a.v0", "flat"), "image/indexes/a.v0.flat.faiss"),
        (LAYOUT.index_sidecar("image", "a.v0", "flat"), "image/indexes/a.v0.flat.json"),
        (LAYOUT.neighbours_recipe("mined"), "neighbours/mined/recipe.json"),
        (LAYOUT.neighbours_record("mined", 3), "neighbours/mined/records/00003.json"),
        (LAYOUT.neighbours_array("mined", "ids"), "neighbours/mined/neighbours.zarr/ids"),
        (LAYOUT.selection("near"), "selections/near.parquet"),
        (LAYOUT.selection_sidecar("near"), "selections/near.json"),
        (metadata_path(LAYOUT.features("text")), "text/features.zarr/zarr.json"),
        (shard_path(LAYOUT.feature_array("text", "a.v0"), 100_000), "text/features.zarr/a.v0/c/100000/0"),
    ],
    ids=str,
)
def test_everything_that_is_made_later_has_its_place(path: Path, expected: str) -> None:
    assert path == Path("/cache") / expected


def test_the_files_of_a_part_are_found_and_no_record_metadata_or_temporary_file_is(tmp_path: Path) -> None:
    parts = [
        "image/features.zarr/a.v0/c/0/0",
        "image/samples/00000.parquet",
        "image/pixels/00000.arrow",
        "image/arrays/a.v0/records/00000.rows",
        "image/arrays/a.v0/records/00000.views",
    ]
    others = ["image/arrays/a.v0/records/00000.json", "image/features.zarr/a.v0/zarr.json", "image/plan.json"]
    touch(tmp_path, *parts, *others, "image/samples/.00001.parquet.1-ab.partial", "text/samples/00000.parquet")
    assert Layout(tmp_path).part_files("image") == {tmp_path / name for name in parts}


def test_what_is_listed_is_sorted_and_of_its_own_modality(tmp_path: Path) -> None:
    touch(tmp_path, "image/arrays/b.v0/x", "image/arrays/a.v0/x", "image/arrays/file", "text/arrays/c.v0/x")
    touch(tmp_path, "neighbours/n/x", "neighbours/m/x")
    touch(tmp_path, *(f"selections/{name}.json" for name in "tswvr"), "selections/u.parquet")
    touch(tmp_path, "image/indexes/b.faiss", "image/indexes/a.faiss", "image/indexes/c.json", "image/indexes/b.json")
    layout = Layout(tmp_path)
    assert [layout.array_names(modality) for modality in MODALITIES] == [["a.v0", "b.v0"], ["c.v0"]]
    assert layout.neighbours_names() == ["m", "n"]
    assert layout.selection_names() == ["r", "s", "t", "v", "w"]
    assert [path.name for path in layout.selection_files()] == ["u.parquet"]
    assert [path.name for path in layout.index_files("image")] == ["a.faiss", "b.faiss"]
    assert [path.name for path in layout.index_sidecars("image")] == ["b.json", "c.json"]


def test_nothing_is_listed_or_created_where_there_is_no_cache(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "none")
    assert layout.array_names("image") == layout.neighbours_names() == layout.selection_names() == []
    assert layout.index_files("text") == layout.index_sidecars("text") == layout.selection_files() == []
    assert layout.part_files("image") == set()
    assert list(tmp_path.iterdir()) == []
