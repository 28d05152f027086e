"""Options that every command has, and rare ones that only `--help-all` shows."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from pipeline.options.layers import ConfigFile
from pipeline.options.types import FilePath
from pipeline.output import only_results_on_stdout

Command = TypeVar("Command", bound=Callable[..., Any])

_HELP_ALL = "pipeline.help_all"


class Flag(click.Option):
    """An option that `--help` leaves out when it is `rare`; `--help-all` shows it too."""

    def __init__(self, *args: Any, rare: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.rare = rare

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return None if self.rare and not ctx.meta.get(_HELP_ALL) else super().get_help_record(ctx)


def _show_all_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_HELP_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


help_all_option = click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all_help,
    help="Show the rarer options too.",
)


def _with_clean_stdout(command: Command) -> Command:
    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        with only_results_on_stdout():
            return command(*args, **options)

    return cast(Command, wrapped)


def shared_options(command: Command) -> Command:
    """Adds what every command has: `--config`, `--json` (as `as_json`), `--quiet`, `--debug`, and a clean stdout.

    The innermost decorator of a command.
    """
    command = _with_clean_stdout(command)
    for add in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
        click.option("--config", cls=ConfigFile, type=FilePath("FILE"), help="TOML file with a table per command."),
    ):
        command = add(command)
    return command
