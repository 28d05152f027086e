"""A recipe is known by its fingerprint, and the difference of two is told field by field."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.errors import DamagedError
from cache_schema.json_file import read_json
from cache_schema.layout import check_name
from cache_schema.recipe import Recipe, array_name, differences
from tests.corpora.tiny_cache import make_cache, recipe_for

BESIDE = {"specification": "x:y", "files": {"/a": {"size_bytes": 1, "mtime_ns": 2}}, "tools": {"numpy": "2"}}


def full() -> Recipe:
    return recipe_for("text", 8, teacher={"name": "模型", "kind": "python"}, logit_bias=-1.5, **BESIDE)


def test_the_fingerprint_is_sha256_over_sorted_json_of_what_changes_features() -> None:
    identity = {
        "modality": "text",
        "teacher": {"kind": "python", "name": "模型"},
        "preprocess": {},
        "dim": 8,
        "logit_scale": 100.0,
        "logit_bias": -1.5,
        "precision": "float32",
        "decoding": {},
        "view": 0,
        "dtype": "float16",
    }
    spelt = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert full().identity == identity
    assert full().fingerprint == hashlib.sha256(spelt).hexdigest()


def test_a_recipe_comes_back_from_the_json_on_disk_with_everything_beside_it() -> None:
    recipe = replace(full(), probes_sha256="9" * 64)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "here") == recipe


def test_the_json_of_a_recipe_holds_its_fields_apart_from_what_is_beside_them() -> None:
    value = full().to_json()
    assert set(value) == {"fingerprint", "recipe", "specification", "files", "tools", "probes_sha256"}
    assert value["fingerprint"] == full().fingerprint and value["recipe"]["dim"] == 8
    assert {name: value[name] for name in BESIDE} == BESIDE


def test_a_recipe_of_a_cache_is_readable_without_us(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=0, num_texts=3)
    value = read_json(cache.layout.recipe("text", "imaginary.v0"))
    assert value["recipe"]["teacher"] == {"name": "imaginary"}
    assert value["fingerprint"] == cache.array("text").recipe.fingerprint


def test_a_recipe_of_the_first_caches_that_names_no_probes_has_none() -> None:
    value = full().to_json()
    del value["probes_sha256"]
    assert Recipe.from_json(value, "here").probes_sha256 == ""


@pytest.mark.parametrize("name", ["fingerprint", "recipe", "specification", "files", "tools"])
def test_a_recipe_that_lacks_a_field_says_which_and_the_way_out(name: str) -> None:
    value = full().to_json()
    del value[name]
    with pytest.raises(DamagedError, match=rf"here is not a recipe \('{name}'\): restore it from a copy"):
        Recipe.from_json(value, "here")


@pytest.mark.parametrize("value", [None, [], "recipe", 3, {}], ids=str)
def test_json_of_another_shape_is_not_a_recipe(value: object) -> None:
    with pytest.raises(DamagedError, match="is not a recipe"):
        Recipe.from_json(value, "here")


def test_an_unknown_or_missing_field_inside_the_recipe_is_refused() -> None:
    value = full().to_json()
    for changed in ({**value["recipe"], "colour": 1}, {k: v for k, v in value["recipe"].items() if k != "dim"}):
        with pytest.raises(DamagedError, match=r"is not a recipe \(.*(colour|dim)"):
            Recipe.from_json({**value, "recipe": changed}, "here")


@pytest.mark.parametrize(("name", "other"), [("dim", 9), ("logit_bias", None), ("view", 1), ("teacher", {"name": ""})])
def test_a_field_edited_by_hand_is_refused_with_both_fingerprints(name: str, other: object) -> None:
    value = full().to_json()
    value["recipe"] = {**value["recipe"], name: other}
    says = full().fingerprint[:12]
    with pytest.raises(DamagedError, match=rf"changed by hand: its fields give fingerprint \w{{12}}, it says {says}:"):
        Recipe.from_json(value, "here")


def test_a_recipe_is_imported_when_its_teacher_says_so() -> None:
    assert recipe_for("image", 4, teacher={"kind": "imported"}).is_imported
    assert not full().is_imported
    assert not recipe_for("image", 4, teacher={"name": "imported"}).is_imported


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
        ({"a": 1}, {}, [("a", 1, None)]),
        ({}, {"a": 0}, [("a", None, 0)]),
        ({"b": {"x": 1, "y": 2}, "a": 3}, {"b": {"x": 1, "y": 5}, "a": 4}, [("a", 3, 4), ("b.y", 2, 5)]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, [("a.b.c", 1, 2)]),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": [1, 2]}, {"a": [2, 1]}, [("a", [1, 2], [2, 1])]),
        ({"a": {"b": 1}}, {"a": 1}, [("a", {"b": 1}, 1)]),
        (1, 2, [("", 1, 2)]),
    ],
)
def test_differences_name_every_leaf_once_in_order(ours: object, theirs: object, expected: list) -> None:
    assert differences(ours, theirs) == expected


@pytest.mark.parametrize(
    ("specification", "view", "expected"),
    [
        ("open_clip:ViT-L-14/openai", 0, "vit-l-14-openai.v0"),
        ("open_clip:ViT-L-14/openai?precision=bf16", 3, "vit-l-14-openai.v3"),
        ("hf:google/siglip2-base", 0, "google-siglip2-base.v0"),
        ("imaginary", 0, "imaginary.v0"),
        ("kind:", 0, "kind.v0"),
        ("python:../../etc/passwd", 0, "etc-passwd.v0"),
        ("hf:模型", 12, "teacher.v12"),
        ("", 0, "teacher.v0"),
        ("hf:" + "a" * 100, 0, "a" * 60 + ".v0"),
        ("hf:" + "a" * 9 + "/" + "b" * 59, 0, "b" * 59 + ".v0"),
    ],
)
def test_an_array_is_named_after_its_teacher_in_letters_that_a_name_may_have(
    specification: str, view: int, expected: str
) -> None:
    assert array_name(specification, view) == expected
    assert check_name(expected, "array") == expected and re.fullmatch(r"[a-z0-9.-]+", expected)
