"""`pipeline`: finds the command, and turns every way to end into one line and an exit code.

0 done, 1 failed, 2 usage, 3 parts failed, 4 refused, 128 + signal when interrupted (DESIGN: `cache_schema.errors`).
"""

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from cache_schema.errors import PipelineError, nearest, unknown_name
from pipeline import signals, streams
from pipeline.commands import COMMANDS, module_of
from pipeline.options.layers import DEBUG_VARIABLE, key_of, variable_of
from pipeline.output import print_error, print_note, printable

# These keep what they did so far and go on from there.
RESUMABLE = ("extract", "import", "mine", "distill", "demo")


class LazyGroup(click.Group):
    """The commands of `COMMANDS`, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(module_of(name)).command
        for param in command.params:
            if isinstance(param, click.Option):
                param.envvar = variable_of(name, key_of(param))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown_name("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        code = run(sys.argv[1:] if args is None else list(args))
        # Whoever left before the end of our results does not have them all.
        sys.exit(code or int(streams.reader_left()))


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    epilog="""\b
Example:
  pipeline extract --images 'photos/{000..099}.tar' --texts captions.txt \\
                   --teacher open_clip:ViT-L-14/openai --cache cache
  pipeline mine --cache cache --from image --to text --k 32 --name near
  pipeline distill --cache cache --student open_clip:ViT-B-32 --out run

\b
Every option can also stand in a TOML file (--config FILE, a table per command) or in
the environment (PIPELINE_EXTRACT_BATCH_SIZE=64; one value per line where an option may
be repeated). A flag beats the environment, that the file, that the default.
Exit codes: 0 done, 1 failed, 2 usage, 3 some parts failed (run again), 4 refused.""",
)
@click.version_option(package_name="vlm-distill", prog_name="pipeline")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Distil a large vision-language model into small ones: encode once, train many students from the cache."""


def run(args: list[str]) -> int:
    """Runs the command line `args` and returns the exit code; an error is one line on stderr.

    An exception that is nobody's message is a bug and passes through; `main` shows it.
    """
    command = next((arg for arg in args if arg in COMMANDS), "")
    try:
        with cli.make_context("pipeline", args) as ctx:
            cli.invoke(ctx)
        return 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        print_error(_usage_message(error))
        return 2
    except PipelineError as error:
        print_error(str(error))
        _show_trace(error, args)
        return error.exit_code
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print_error(f"{os.strerror(error.errno)}: {str(error.filename)[:60]}...: name a shorter path")
            return 2
        print_error(f"{error}: free or mend what it names, then run again")
        _show_trace(error, args)
        return 1
    except SystemExit as error:
        # Nothing of ours does that: a 0 would say that all went well.
        print_error(
            f"a teacher or a library called sys.exit({error.code!r}): raise an error there that says what is wrong"
        )
        _show_trace(error, args)
        return 1
    except KeyboardInterrupt as interrupt:
        said = "" if isinstance(interrupt, signals.Interrupted) else str(interrupt)
        saved = "state saved, run again to resume" if command in RESUMABLE else "nothing was changed"
        print_note(f"interrupted: {said or saved}")
        return signals.exit_code()


def _usage_message(error: click.UsageError) -> str:
    """Returns what is wrong, where, and what to do, for an error that click found."""
    ctx = error.ctx
    path = ctx.command_path if ctx is not None else "pipeline"
    if isinstance(error, click.NoSuchOption):
        known = [name for param in ctx.command.params for name in param.opts] if ctx is not None else []
        return f"unknown option {error.option_name!r}{nearest(error.option_name, known)}; see `{path} --help`"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        metavar = error.param.make_metavar(ctx) if ctx is not None else ""
        name = metavar if isinstance(error.param, click.Argument) else f"{error.param.opts[-1]} {metavar}"
        return f"{name} is missing; see `{path} --help`"
    if isinstance(error, click.BadParameter) and isinstance(error.param, click.Option) and ctx is not None:
        return f"{_place_of(error.param, ctx)}: {error.message.rstrip('.')}; see `{path} --help`"
    message = error.format_message().rstrip(".")
    if message == "Missing command":
        message = f"no command given; known: {', '.join(COMMANDS)}"
    return f"{message[:1].lower()}{message[1:]}; see `{path} --help`"


def _place_of(option: click.Option, ctx: click.Context) -> str:
    """Returns where the value of `option` came from: its flag, its variable or its line in the configuration file."""
    source = ctx.get_parameter_source(option.name or "")
    if source is ParameterSource.ENVIRONMENT:
        return f"environment variable {option.envvar}"
    if source is ParameterSource.DEFAULT_MAP:
        return f"setting {key_of(option)} in the --config file"
    return max(option.opts, key=len)


def _debug_wanted(args: Sequence[str]) -> bool:
    return "--debug" in args or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def _show_trace(error: BaseException, args: Sequence[str]) -> None:
    if _debug_wanted(args):
        for line in traceback.format_exception(error):
            for part in line.rstrip("\n").split("\n"):
                print_note(part)


def _on_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # The interpreter calls this and then exits with 1.
    if _debug_wanted(sys.argv[1:]):
        _show_trace(error, ["--debug"])
    detail = printable(" ".join(str(error).split()))[:300]
    print_error(f"{kind.__name__}: {detail} (a bug of this program): run again with --debug for the traceback")


def main() -> NoReturn:
    """Entry point of the `pipeline` program."""
    streams.keep_streams()
    sys.excepthook = _on_bug
    signals.install()
    cli.main()
