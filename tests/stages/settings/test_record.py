"""The values of a configuration become JSON as they are, and nothing that is none gets in."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from stages.settings.declare import configuration, running, setting
from stages.settings.record import record_of, values_of


@configuration
class Water:
    """What a plant drinks."""

    litres: float = setting(default=0.1, help="A day.")
    source: Path = setting(default=Path("well"), help="Not recorded.", recorded=False)


@configuration
class Garden(Water):
    """A garden is watered."""

    beds: tuple[Any, ...] = setting(default=(), help="Of anything.")
    shares: Mapping[str, Any] = setting(default_factory=dict, help="Of anything.")
    fence: bool | None = running(default=None, help="Around it.")


def test_a_record_is_json_that_gives_back_every_value() -> None:
    shares = MappingProxyType({"ü": {"deep": (1, 2.5)}, "none": None})
    record = record_of(Garden(litres=1e300, beds=("a", (True, 2**60), ()), shares=shares))
    assert json.loads(json.dumps(record)) == record
    assert record == {
        "litres": 1e300,
        "beds": ["a", [True, 2**60], []],
        "shares": {"ü": {"deep": [1, 2.5]}, "none": None},
        "fence": None,
    }
    assert list(record) == ["litres", "beds", "shares", "fence"]


@pytest.mark.parametrize("value", [Path("x"), [1], {1, 2}, b"x", 1j])
def test_a_value_without_json_of_its_own_is_a_mistake_of_ours(value: Any) -> None:
    with pytest.raises(AssertionError, match="has no JSON of its own"):
        record_of(Garden(shares={"one": value}))


def test_values_are_the_objects_themselves_in_the_order_of_the_fields() -> None:
    beds = (object(),)
    values = values_of(Garden(beds=beds))
    assert list(values) == ["litres", "source", "beds", "shares", "fence"]
    assert values["beds"] is beds and values["source"] == Path("well")


def test_the_values_of_a_base_are_those_of_its_fields_alone() -> None:
    assert values_of(Garden(litres=2.0, fence=True), Water) == {"litres": 2.0, "source": Path("well")}
