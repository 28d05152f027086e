"""A part is one task for everything of it that is pending, and none when nothing is."""

from pathlib import Path

from cache_schema import atomic
from cache_schema.cache import Cache, create_cache
from cache_schema.pixels import PixelRow, PixelsRecipe, commit_pixels, publish_pixels_recipe
from cache_schema.stored_pixels import StoredPixels, stored_pixels
from stages.parts.pending import PartReport, PartTask, pending_tasks
from tests.corpora.tiny_cache import add_array, unit_features


def make(path: Path) -> Cache:
    """Returns a cache of 40 images in parts of 16: `a` has parts 0 and 2, `b` part 2, and stored pixels part 0."""
    cache = create_cache(path, 16)
    add_array(cache, "image", unit_features(40, 8), name="a.v0", parts=(0, 2))
    add_array(cache, "image", unit_features(40, 8, seed=1), name="b.v0", parts=(2,))
    pixels = PixelsRecipe({"side": 8}, {}, "0" * 64, {})
    publish_pixels_recipe(cache.layout, pixels, fence=None)
    atomic.make_folder(cache.layout.all_pixels)
    plan = cache.plan("image")
    rows = [PixelRow(bytes(16), b"jpeg")] * 16
    commit_pixels(cache.layout, pixels, 0, rows, part_fingerprint=plan.part_fingerprint(plan.part(0)), fence=None)
    return Cache.open(path)


def shown(tasks: list[PartTask]) -> list[tuple[int, tuple[str, ...], bool]]:
    return [(task.part.number, task.arrays, task.pixels) for task in tasks]


def test_a_task_names_the_arrays_and_pixels_that_lack_the_part(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache")
    arrays, pixels = [cache.array("image", name) for name in ("a.v0", "b.v0")], stored_pixels(cache)
    assert isinstance(pixels, StoredPixels)
    tasks = list(pending_tasks(arrays, pixels))
    assert shown(tasks) == [(0, ("b.v0",), False), (1, ("a.v0", "b.v0"), True), (2, (), True)]
    assert shown(list(pending_tasks(arrays))) == [(0, ("b.v0",), False), (1, ("a.v0", "b.v0"), False)]
    assert shown(list(pending_tasks(arrays[:1]))) == [(1, ("a.v0",), False)]
    plan = cache.plan("image")
    assert [task.part_fingerprint for task in tasks] == [plan.part_fingerprint(part) for part in plan.parts()]
    assert str(tasks[1]) == "image part 1"


def test_sentences_have_no_pixels(tmp_path: Path) -> None:
    cache = make(tmp_path / "cache")
    add_array(cache, "text", unit_features(20, 8), name="a.v0", parts=(0,))
    tasks = pending_tasks([Cache.open(cache.path).array("text", "a.v0")], stored_pixels(cache))
    assert shown(list(tasks)) == [(1, ("a.v0",), False)]


def test_the_reports_of_two_passes_over_a_part_add_up() -> None:
    first = PartReport("image", 3, 16, 2, {"read": 1.0, "write": 0.5})
    second = PartReport("image", 3, 16, 0, {"read": 0.25, "forward": 4.0})
    assert first + second == PartReport("image", 3, 16, 2, {"read": 1.25, "write": 0.5, "forward": 4.0})
