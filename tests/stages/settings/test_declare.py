"""A setting is declared once: its words, bounds and default stand on the field."""

from pathlib import Path

import pytest

from cache_schema.errors import UsageError
from pipeline.executors.config import ExecutorConfig
from stages.distill.config import DistillConfig, Method, Running
from stages.evaluate.config import EvaluateConfig
from stages.extract.config import ExtractConfig
from stages.imported.config import ImportConfig
from stages.settings.check import check_settings
from stages.settings.declare import configuration, running, setting, settings_in
from stages.settings.record import record_of, values_of

CONFIGURATIONS = (ExtractConfig, ImportConfig, EvaluateConfig, DistillConfig, ExecutorConfig)


@configuration
class Kiln:
    """How clay is burnt."""

    folder: Path = setting(help="Folder of the pots.", recorded=False)
    glazes: tuple[str, ...] = setting(default=(), help="One after the other.", more="The last one is seen.")
    degrees: float = setting(default=900.0, above=20, most=1300, help="Of the hottest hour, in Celsius.")
    hours: int | None = setting(default=None, least=1, most=48, help="In the fire.", if_none="until it glows")
    weights: dict[str, float] = setting(default_factory=dict, least=0, most=1, each="the weight of pot", help="Each.")
    fuel: str = running(default="wood", choices=("wood", "gas"), help="What burns.")

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degrees": 20}, "degrees is 20: use a value above 20, at most 1300"),
        ({"degrees": 1300.5}, "degrees is 1300.5: use a value above 20, at most 1300"),
        ({"degrees": float("nan")}, "degrees is nan: use a value above 20, at most 1300"),
        ({"degrees": float("inf")}, "degrees is inf: use a value above 20, at most 1300"),
        ({"hours": 0}, "hours is 0: use a value from 1 to 48"),
        ({"hours": 49}, "hours is 49: use a value from 1 to 48"),
        ({"weights": {"jug": 0.5, "cup": 2.0}}, "the weight of pot cup is 2: use a value from 0 to 1"),
        ({"fuel": "wod"}, "unknown fuel 'wod' (did you mean 'wood'?); known: gas, wood"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_the_rule(changes: dict, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Kiln(folder=Path("pots"), **changes)
    assert str(refusal.value) == message


def test_values_at_their_bounds_and_none_are_allowed() -> None:
    assert Kiln(folder=Path("p"), degrees=20.1, hours=1, weights={"cup": 0.0}).hours == 1
    assert Kiln(folder=Path("p"), degrees=1300, hours=48, weights={"cup": 1}).degrees == 1300
    assert Kiln(folder=Path("p"), fuel="gas").hours is None


def test_a_setting_without_a_default_must_be_given_by_its_name() -> None:
    with pytest.raises(TypeError, match="folder"):
        Kiln()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Kiln(Path("pots"))  # type: ignore[call-arg,misc]


def test_the_docstring_gains_the_words_of_every_setting() -> None:
    assert Kiln.__doc__ is not None
    assert Kiln.__doc__.splitlines() == [
        "How clay is burnt.",
        "",
        "Attributes:",
        "    folder: Folder of the pots.",
        "    glazes: One after the other. The last one is seen.",
        "    degrees: Of the hottest hour, in Celsius.",
        "    hours: In the fire. None: until it glows.",
        "    weights: Each.",
        "    fuel: What burns.",
    ]


def test_a_record_keeps_values_as_json_and_leaves_out_what_is_recorded_by_what_it_stands_for() -> None:
    kiln = Kiln(folder=Path("pots"), glazes=("white", "blue"), weights={"cup": 0.5})
    assert record_of(kiln) == {
        "glazes": ["white", "blue"],
        "degrees": 900.0,
        "hours": None,
        "weights": {"cup": 0.5},
        "fuel": "wood",
    }


def test_the_values_of_one_base_are_told_from_those_of_the_other() -> None:
    config = DistillConfig(cache=Path("c"), out=Path("o"), seed=3, num_threads=2)
    method, how = values_of(config, Method), values_of(config, Running)
    assert method.keys() & how.keys() == set()
    assert (method["seed"], how["num_threads"], how["out"]) == (3, 2, Path("o"))
    assert DistillConfig(**method, **how) == config


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_every_setting_has_words_and_every_number_a_least_value(kind: type) -> None:
    documentation = " ".join((kind.__doc__ or "").split())
    for name, about in settings_in(kind).items():
        assert f"{name}: {about.help}" in documentation
        if {"int", "float"} & set(str(kind.__dataclass_fields__[name].type).replace("'", " ").split()):  # type: ignore[attr-defined]
            assert (about.least is None) != (about.above is None), name


def test_what_changes_the_result_is_told_from_what_does_not() -> None:
    assert not any(about.running for about in settings_in(Method).values())
    assert all(about.running for kind in (Running, ExecutorConfig) for about in settings_in(kind).values())
    method = {name for name, about in settings_in(ExtractConfig).items() if not about.running}
    assert method == {
        *("images", "texts", "teacher", "cache", "part_rows"),
        *("precision", "views", "view_seed", "store_pixels"),
    }
