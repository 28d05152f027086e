"""Layers option values: a flag beats the environment, that the configuration file, that the default.

click does the layering; this file feeds it. `--config FILE` is TOML with a table per command whose keys are the option
names with underscores; `PIPELINE_<COMMAND>_<OPTION>` are the environment variables. A name in either that is not an
option is refused with the nearest one that is: a misspelt setting that does nothing costs a training run.
"""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from cache_schema.errors import EnvironmentProblem, UsageError, unknown_name

PREFIX = "PIPELINE"
DEBUG_VARIABLE = "PIPELINE_DEBUG"

MOST_CONFIG_BYTES = 1 << 20
MOST_SHOWN = 300

_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){1000}""")

# Others use variables that begin like ours (Azure's PIPELINE_WORKSPACE, Kubernetes' PIPELINE_SERVICE_HOST), so one that
# names no command is only refused when it nearly does.
_NEAR = 0.75


def variable_of(command_path: str, option: str) -> str:
    """Returns the environment variable of an `option` of a command, e.g. PIPELINE_EXTRACT_BATCH_SIZE."""
    return f"{PREFIX}_{command_path}_{option}".upper().replace("-", "_").replace(" ", "_")


def read_defaults(path: Path, command: str, options: Iterable[str], commands: Iterable[str]) -> dict[str, Any]:
    """Returns the table of `command` in the TOML file at `path`, by option name.

    Raises:
        UsageError: not TOML, or a table or key that names no command or option.
        EnvironmentProblem: the file cannot be read.
    """
    content = _content_of(path)
    try:
        text = content.decode("utf-8-sig")
        # Python's reader takes hours for a key of a hundred thousand words.
        if _DEEP_KEY.search(text):
            raise RecursionError
        tables = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"--config {path} nests tables too deep: write [command], and its settings below") from None
    except ValueError as error:
        raise UsageError(f"--config {path} is not TOML: {_in_short(error)}") from None
    for name, value in tables.items():
        if name not in commands:
            raise UsageError(f"--config {path}: {unknown_name('table', name, commands)}")
        if not isinstance(value, dict):
            raise UsageError(f"--config {path}: {name} must be a table: write [{name}] and its settings below")
    settings: dict[str, Any] = tables.get(command, {})
    for key in settings:
        if key not in options:
            raise UsageError(f"--config {path}, [{command}]: {unknown_name('setting', key, options)}")
    return settings


def _content_of(path: Path) -> bytes:
    """Returns the content of a regular file; others, which may never end or answer, are not opened."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UsageError(f"--config {path} is no regular file: name a TOML file")
        if about.st_size > MOST_CONFIG_BYTES:
            raise UsageError(
                f"--config {path} has {about.st_size:,} bytes, more than {MOST_CONFIG_BYTES:,}: name a TOML file with "
                "settings of this program"
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--config {path} does not exist: name a TOML file") from None
    except OSError as error:
        raise EnvironmentProblem(f"--config {path} cannot be read ({error.strerror}): name a readable file") from None


def _in_short(error: ValueError) -> str:
    said = " ".join(str(error).split())
    return said if len(said) <= MOST_SHOWN else f"{said[:MOST_SHOWN]}..."


def check_environment(
    command: str, options: Iterable[str], commands: Iterable[str], environment: Mapping[str, str] = os.environ
) -> None:
    """Raises `UsageError` for a variable that looks like a setting of `command` and is none; see `variable_of`."""
    known = {variable_of(command, option) for option in options}
    own = f"{PREFIX}_{command}_".upper()
    others = [f"{PREFIX}_{name}_".upper() for name in commands if name != command]
    for name in environment:
        if name in known or name == DEBUG_VARIABLE or not name.startswith(f"{PREFIX}_"):
            continue
        if name.startswith(own):
            raise UsageError(f"environment: {unknown_name('variable', name, known)}")
        if any(name.startswith(other) for other in others):
            continue
        word = name.removeprefix(f"{PREFIX}_").split("_")[0]
        words = [*(other.upper() for other in commands), "DEBUG"]
        if close := difflib.get_close_matches(word, words, n=1, cutoff=_NEAR):
            raise UsageError(
                f"environment: variable {name} names no setting (did you mean {name.replace(word, close[0], 1)!r}?); "
                "correct or unset it"
            )


def refuse_stray_cluster(executor: str, address: str | None, environment: Mapping[str, str] = os.environ) -> None:
    """Raises `UsageError` when RAY_ADDRESS points at a cluster that this run was not told to use, or the reverse."""
    stray = environment.get("RAY_ADDRESS")
    if address is not None and executor != "ray":
        raise UsageError(f"--ray-address {address} is for --executor ray, this run has --executor {executor}: add it")
    if stray and address is None:
        raise UsageError(
            f"RAY_ADDRESS is set ({stray}), but this run does not ask for a cluster: "
            "add --executor ray --ray-address with that value, or unset RAY_ADDRESS"
        )


def key_of(option: click.Option) -> str:
    """Returns the name of `option` in a configuration file: its longest flag with underscores, e.g. batch_size."""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


class ConfigFile(click.Option):
    """`--config FILE`: read before all other options, so that they find their values in it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "is_eager": True, "expose_value": False, "callback": _apply_config})


def _apply_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    # Runs for every command, with a file or without: it is also where misspelt environment variables are found.
    if ctx.resilient_parsing:
        return
    command = ctx.info_name or ""
    commands = _names_beside(ctx)
    options = {key_of(p): p for p in ctx.command.params if isinstance(p, click.Option) and p is not param}
    check_environment(command, [*options, "config"], commands)
    if value is not None:
        settings = read_defaults(value, command, options, commands)
        for key, given in settings.items():
            if options[key].is_flag and not isinstance(given, bool | str):
                raise UsageError(f"--config {value}, [{command}]: {key} is neither true nor false: write one of these")
        ctx.default_map = {
            options[key].name or key: _list_of(given) if options[key].multiple else given
            for key, given in settings.items()
        }


def _names_beside(ctx: click.Context) -> list[str]:
    """Returns the names of all commands of the group that the command of `ctx` belongs to."""
    group = ctx.parent
    if group is None or not isinstance(group.command, click.Group):
        return [ctx.info_name or ""]
    return group.command.list_commands(group)


def _list_of(given: Any) -> Any:
    """Returns the values of an option that may be repeated: one, a list of them, or a table as `NAME=X` each."""
    if isinstance(given, dict):
        return [f"{name}={number}" for name, number in given.items()]
    return [given] if isinstance(given, str) else given
