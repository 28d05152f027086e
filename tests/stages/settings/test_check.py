"""Every number of a configuration is compared with its bounds, and every word with its choices."""

from typing import Any

import pytest

from cache_schema.errors import UsageError
from stages.settings.check import check_settings
from stages.settings.declare import configuration, setting


@configuration
class Oven:
    """How bread is baked: nothing is checked before it is asked for."""

    loaves: int = setting(default=1, least=0, help="How many.")
    salt: float = setting(default=0.5, above=0, most=2, help="Grams.")
    cold: float = setting(default=0.0, help="No least value.")
    crusts: dict[str, Any] = setting(default_factory=dict, above=0, most=1e9, each="the crust of", help="Each.")
    steam: bool = setting(default=True, least=5, help="A truth is no number.")
    flour: str | None = setting(default=None, choices=("rye", "spelt"), help="What kind.")
    fan: str = setting(default="on", choices=("on", "off"), flag="--use-fan", help="By its flag.")


def said(**values: Any) -> str:
    with pytest.raises(UsageError) as refusal:
        check_settings(Oven(**values))
    return str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"loaves": 0},
        {"loaves": 2**31 - 1},
        {"salt": 2},
        {"salt": 5e-324},
        {"cold": -1e300},
        {"crusts": {"a": 1e9, "b": 1e-9}},
        {"steam": False},
        {"flour": None},
        {"flour": "rye", "fan": "off"},
    ],
)
def test_values_within_their_bounds_pass(values: dict[str, Any]) -> None:
    check_settings(Oven(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loaves": -1}, "loaves is -1: use a value from 0 to 2147483647"),
        ({"loaves": 2**31}, "loaves is 2147483648: use a value from 0 to 2147483647"),
        ({"salt": 0}, "salt is 0: use a value above 0, at most 2"),
        ({"salt": -0.0}, "salt is -0: use a value above 0, at most 2"),
        ({"salt": 2.25}, "salt is 2.25: use a value above 0, at most 2"),
        ({"cold": float("inf")}, "cold is inf: use a value of at most 2147483647"),
        ({"cold": float("nan")}, "cold is nan: use a value of at most 2147483647"),
        (
            {"crusts": {"thin": 1.0, "thick ü": 2e9}},
            "the crust of thick ü is 2e+09: use a value above 0, at most 1e+09",
        ),
        ({"crusts": {"thin": float("nan")}}, "the crust of thin is nan: use a value above 0, at most 1e+09"),
        ({"flour": "ry"}, "unknown flour 'ry' (did you mean 'rye'?); known: rye, spelt"),
        ({"flour": ""}, "unknown flour ''; known: rye, spelt"),
        ({"fan": "ON"}, "unknown use-fan 'ON'; known: off, on"),
    ],
)
def test_what_is_said_names_the_value_and_the_rule(values: dict[str, Any], message: str) -> None:
    assert said(**values) == message


def test_the_first_value_in_the_order_of_the_fields_is_the_one_that_is_named() -> None:
    assert said(salt=3, loaves=-1).startswith("loaves is -1")
    assert said(fan="no", flour="no").startswith("unknown flour")
