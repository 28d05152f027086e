"""Every field of every configuration is a flag, a key of the file and a variable, with its own bounds and default."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cache_schema.errors import UsageError
from pipeline.cli import cli
from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.options.fields import words_of
from stages.distill.config import DistillConfig
from stages.evaluate.config import EvaluateConfig
from stages.extract.config import ExtractConfig
from stages.imported.config import ImportConfig
from stages.settings.declare import Setting, settings_in

# Command -> its configurations, each with the values that it cannot do without.
ASKED: dict[str, list[tuple[type, dict[str, Any]]]] = {
    "extract": [(ExtractConfig, {"cache": Path("/c")}), (ExecutorConfig, {"name": "ray", "device": "cuda"})],
    "plan": [(ExtractConfig, {"cache": Path("/c")})],
    "import": [(ImportConfig, {"cache": Path("/c"), "image_features": ("f.npy",), "text_features": ("g.npy",)})],
    "evaluate": [(EvaluateConfig, {"model": "run", "data": Path("/d")})],
    "distill": [(DistillConfig, {"cache": Path("/c"), "out": Path("/o")})],
}
ARGUMENTS = {"evaluate": ["run"]}
NOT_ASKED_BY_PLAN = {"max_bad_fraction", "index_device", "retry_bad", "allow_useless_sources"}

# The flags of released versions, in the order that people know. New ones may stand between them.
RELEASED = {
    "extract": """--images --texts --teacher --cache --add-teacher --batch-size --part-rows --precision --device
        --num-threads --decode-workers --max-bad-fraction --views --view-seed --store-pixels --allow-mixed-numerics
        --index --index-device --executor --ray-address --workers --gpus-per-worker --cpus-per-worker --join-seconds
        --stall-seconds --help-all --config --json --quiet --debug""",
    "plan": """--images --texts --teacher --cache --add-teacher --batch-size --part-rows --precision --device
        --num-threads --decode-workers --views --view-seed --store-pixels --allow-mixed-numerics --index
        --calibrate-seconds --workers --help-all --config --json --quiet --debug""",
    "import": """--image-features --text-features --images --texts --teacher-name --cache --logit-scale --add-teacher
        --part-rows --decode-workers --max-bad-fraction --index --index-device --config --json --quiet --debug""",
    "evaluate": """--data --teacher --compare --batch-size --device --num-threads --decode-workers --config --json
        --quiet --debug""",
    "distill": """--cache --student --out --from --images --texts --negatives --steps --batch-size --text-batch-size
        --micro-batch-size --logit-scale --loss --learning-rate --seed --fresh --precision --device --executor
        --ray-address --image-array --pictures --text-array --mined-share --temperature --min-learning-rate
        --warmup-learning-rate --warmup-share --weight-decay --min-crop --flip --window-parts --picture-memory-bytes
        --num-threads --decode-workers --checkpoint-steps --checkpoint-seconds --keep-checkpoints --help-all --config
        --json --quiet --debug""",
    "repair": "--batch-size --device --config --json --quiet --debug",
}
RARE = {
    "plan": "--view-seed --allow-mixed-numerics",
    "extract": "--view-seed --allow-mixed-numerics --gpus-per-worker --cpus-per-worker --join-seconds --stall-seconds",
    "distill": """--image-array --pictures --text-array --mined-share --temperature --min-learning-rate
        --warmup-learning-rate --warmup-share --weight-decay --min-crop --flip --window-parts --picture-memory-bytes
        --num-threads --decode-workers --checkpoint-steps --checkpoint-seconds --keep-checkpoints""",
}

# Field -> a value that is not its default, where the type alone does not tell one.
OTHERS: dict[str, Any] = {
    "part_rows": 2048,
    "negatives": "mined:near",
    "ray_address": "head:6379",
    "workers": WorkerRange(1, 8),
    "name": "ray",
    "weights": {"vl": 0.25, "feature": 2.0},
    "temperatures": {"pvl": 2.5},
}

Case = tuple[str, type, dict[str, Any], str]
CASES: list[Case] = [
    (command, kind, required, name)
    for command, kinds in ASKED.items()
    for kind, required in kinds
    for name in settings_in(kind)
    if not (command == "plan" and name in NOT_ASKED_BY_PLAN)
]
FLAGS = [case for case in CASES if settings_in(case[1])[case[3]].flag is not None]


def named(case: Case) -> str:
    return f"{case[0]}-{case[3]}"


def key_of(name: str, about: Setting) -> str:
    """Returns the key of a setting in a file; its flag has dashes in it, its variable is in capitals."""
    return about.flag.partition("/")[0].lstrip("-").replace("-", "_") if about.flag else name


def parsed(command: str, *words: str) -> dict[str, Any]:
    """Returns what `command` is called with, without calling it."""
    with cli.make_context("pipeline", [command]) as group:
        found = cli.get_command(group, command)
        assert found is not None
        with found.make_context(command, [*ARGUMENTS.get(command, []), *words], parent=group) as ctx:
            return ctx.params


def option(command: str, name: str) -> click.Option:
    with cli.make_context("pipeline", [command]) as group:
        found = cli.get_command(group, command)
        assert found is not None
        (one,) = (param for param in found.params if param.name == name)
    assert isinstance(one, click.Option)
    return one


def words_without(kind: type, required: Mapping[str, Any], name: str) -> list[str]:
    """Returns flags for what a command cannot do without, but for the field `name`."""
    settings = settings_in(kind)
    given = {key: value for key, value in required.items() if key != name and settings[key].flag is not None}
    words = [
        word
        for key, value in given.items()
        for one in (value if isinstance(value, tuple) else (value,))
        for word in (f"--{key_of(key, settings[key]).replace('_', '-')}", str(one))
    ]
    return [*words, *(["--cache", "/c", "--device", "cuda"] if kind is ExecutorConfig else [])]


def default_of(kind: type, name: str) -> Any:
    (field,) = (field for field in fields(kind) if field.name == name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def another(kind: type, required: Mapping[str, Any], name: str) -> Any:
    """Returns a value of the field `name` that is not its default."""
    about, default = settings_in(kind)[name], default_of(kind, name)
    annotation = str(kind.__annotations__.get(name) or DistillConfig.__dataclass_fields__[name].type)
    if name in OTHERS:
        return OTHERS[name]
    if about.choices:
        return next(word for word in about.choices if word != default)
    if isinstance(default, bool):
        return not default
    if "tuple" in annotation:
        return ("one two", "three")
    if "Path" in annotation:
        return Path("/some/where")
    if "int" in annotation:
        return int((default if isinstance(default, int) else 0) + 2)
    if "float" in annotation:
        return ((about.least or about.above or 0) + min(about.most, 100)) / 4
    return "some/name"


def as_text(value: Any) -> list[str]:
    """Returns a value as it is typed: several ones for a flag that may be repeated."""
    if isinstance(value, Mapping):
        return [f"{key}={number}" for key, number in value.items()]
    return [str(one) for one in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("command", RELEASED)
def test_the_flags_of_released_versions_are_there_in_their_order(command: str) -> None:
    with cli.make_context("pipeline", [command]) as group:
        found = cli.get_command(group, command)
    assert found is not None
    flags = [param.opts[0] for param in found.params if isinstance(param, click.Option)]
    known = RELEASED[command].split()
    assert [flag for flag in flags if flag in known] == known
    rare = {param.opts[0] for param in found.params if getattr(param, "rare", False)}
    assert rare & set(known) == set(RARE.get(command, "").split())


@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_field_has_one_flag_or_says_that_it_has_none(case: Case) -> None:
    command, kind, _, name = case
    about = settings_in(kind)[name]
    with cli.make_context("pipeline", [command]) as group:
        found = cli.get_command(group, command)
    assert found is not None
    own = [param for param in found.params if isinstance(param, click.Option) and param.name == name]
    if about.flag is None:
        assert kind is ExecutorConfig or own == []
        return
    (flag,) = own
    assert flag.opts == [f"--{key_of(name, about).replace('_', '-')}"]
    assert flag.secondary_opts == ([about.flag.partition("/")[2]] if about.flag and "/" in about.flag else [])
    assert getattr(flag, "rare", None) == about.rare
    assert (flag.help or "").startswith(about.help)


@pytest.mark.parametrize("how", ["flag", "variable", "file"])
@pytest.mark.parametrize("case", FLAGS, ids=named)
def test_a_flag_a_variable_and_a_key_of_the_file_set_the_field(
    case: Case, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, kind, required, name = case
    about = settings_in(kind)[name]
    value, key, words = another(kind, required, name), key_of(name, about), words_without(kind, required, name)
    if how == "variable":
        monkeypatch.setenv(f"PIPELINE_{command}_{key}".upper(), "\n".join(as_text(value)))
    elif how == "file":
        plain = value if isinstance(value, bool | int | float | tuple | Mapping) else str(value)
        spelt = (
            f"[{command}.{key}]\n" + "".join(f"{n} = {v}\n" for n, v in plain.items())
            if isinstance(plain, Mapping)
            else f"[{command}]\n{key} = {json.dumps(plain)}\n"
        )
        (tmp_path / "f.toml").write_text(spelt)
        words += ["--config", str(tmp_path / "f.toml")]
    elif isinstance(value, bool):
        on, _, off = (about.flag or f"--{key.replace('_', '-')}").partition("/")
        words.append(on if value else off)
    else:
        words += [word for one in as_text(value) for word in (f"--{key.replace('_', '-')}", one)]
    found = parsed(command, *words)[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("case", FLAGS, ids=named)
def test_a_field_that_nobody_sets_has_the_default_of_the_configuration(case: Case) -> None:
    command, kind, required, name = case
    if default_of(kind, name) is MISSING:
        with pytest.raises(click.MissingParameter):
            parsed(command, *words_without(kind, required, name))
        return
    found = parsed(command, *words_without(kind, required, name))[name]
    assert found == default_of(kind, name)


@pytest.mark.parametrize("case", FLAGS, ids=named)
def test_help_shows_the_default_or_what_is_done_without_a_value(case: Case) -> None:
    command, kind, _, name = case
    about, default, flag = settings_in(kind)[name], default_of(kind, name), option(command, name)
    with cli.make_context("pipeline", [command]) as ctx:
        ctx.meta["pipeline.help_all"] = True
        record = flag.get_help_record(ctx)
    assert record is not None
    if isinstance(default, bool):
        words = flag.opts[0] if default else next(iter(flag.secondary_opts), "")
        shown = [words.lstrip("-")] if words else []
    elif default in (MISSING, None, (), {}):
        shown = [about.if_none] if about.if_none else []
    else:
        shown = [str(default)]
    for words in shown:
        assert f"[default: {words}]" in record[1]
    assert record[1].count("[default:") == len(shown)
    assert ("[required]" in record[1]) == (default is MISSING)


def outside(about: Setting) -> list[float]:
    """Returns the nearest values that are just not allowed; of a float, near enough."""
    low = about.above if about.above is not None else about.least
    assert low is not None
    step = 1 if isinstance(about.most, int) and isinstance(low, int) else 1e-6
    return [low if about.above is not None else low - step, about.most + max(step, about.most * 1e-6 * (step < 1))]


BOUND = [case for case in FLAGS if settings_in(case[1])[case[3]].least is not None]
BOUND += [case for case in FLAGS if settings_in(case[1])[case[3]].above is not None]


@pytest.mark.parametrize("case", BOUND, ids=named)
def test_a_number_out_of_bounds_is_refused_by_the_constructor_and_by_the_flag(case: Case) -> None:
    command, kind, required, name = case
    about = settings_in(kind)[name]
    flag = f"--{key_of(name, about).replace('_', '-')}"
    for number in outside(about):
        of_loss = about.each != ""
        with pytest.raises(UsageError, match="use a value"):
            kind(**{**required, name: {"vl": number} if of_loss else number})
        typed = f"vl={number}" if of_loss else str(number)
        result = CliRunner().invoke(cli, [command, *words_without(kind, required, name), flag, typed])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {flag}: "), result.stderr
        assert "give a" in result.stderr


@pytest.mark.parametrize("case", BOUND, ids=named)
def test_the_numbers_at_the_bounds_are_taken_by_the_constructor_and_by_the_flag(case: Case) -> None:
    command, kind, required, name = case
    about = settings_in(kind)[name]
    flag = f"--{key_of(name, about).replace('_', '-')}"
    # The most rows of a part are no multiple of a chunk.
    for number in (about.least, about.most if name != "part_rows" else 2**30):
        if number is None:
            continue
        of_loss = about.each != ""
        value = {"vl": float(number)} if of_loss else number
        made = getattr(kind(**{**required, name: value}), name)
        found = parsed(command, *words_without(kind, required, name), flag, f"vl={number}" if of_loss else str(number))
        assert found[name] == value and (made["vl"] == number if of_loss else made == number)


@pytest.mark.parametrize("case", [case for case in FLAGS if settings_in(case[1])[case[3]].choices], ids=named)
def test_a_word_that_is_no_choice_is_refused_by_the_constructor_and_by_the_flag(case: Case) -> None:
    command, kind, required, name = case
    about = settings_in(kind)[name]
    wrong = f"{about.choices[0]}x"
    with pytest.raises(UsageError, match=f"unknown .*did you mean '{about.choices[0]}'"):
        kind(**{**required, name: wrong})
    flag = f"--{key_of(name, about).replace('_', '-')}"
    result = CliRunner().invoke(cli, [command, *words_without(kind, required, name), flag, wrong])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {flag}: ") and f"did you mean '{about.choices[0]}'" in result.stderr


@pytest.mark.parametrize("case", [case for case in FLAGS if case[0] not in ("extract", "plan")], ids=named)
def test_the_words_of_a_configuration_ask_for_it_again(case: Case) -> None:
    command, kind, required, name = case
    asked = replace(kind(**required), **{name: another(kind, required, name)})
    found = parsed(command, *words_of(asked))
    assert kind(**{**required, **{key: found[key] for key in settings_in(kind) if key in found}}) == asked


def test_only_what_differs_from_the_defaults_is_among_the_words() -> None:
    config = ExtractConfig(
        cache=Path("/c"), texts=("a b.txt", "c.txt"), add_teacher=True, index=False, views=2, precision="auto"
    )
    words = ["--texts", "a b.txt", "--texts", "c.txt", "--cache", "/c", "--add-teacher", "--views", "2", "--no-index"]
    assert list(words_of(config)) == words


@pytest.mark.parametrize("command", ["plan", "repair"])
def test_commands_that_share_settings_share_their_words_and_types(command: str) -> None:
    with cli.make_context("pipeline", [command]) as group:
        found = cli.get_command(group, command)
    assert found is not None
    own = [param for param in found.params if param.name in settings_in(ExtractConfig) and param.name != "cache"]
    assert len(own) == (16 if command == "plan" else 2)
    for param in own:
        of_extract = option("extract", param.name or "")
        assert isinstance(param, click.Option)
        assert param.help == of_extract.help and param.default == of_extract.default
        assert vars(param.type) == vars(of_extract.type)
