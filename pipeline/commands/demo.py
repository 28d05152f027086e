"""`pipeline demo`: the whole pipeline on real pictures and sentences."""

import shlex
from pathlib import Path

import click

from pipeline.options.shared import shared_options
from pipeline.options.types import FilePath
from pipeline.output import print_result, table

STUDENT_COLUMNS = ("name", "zero_shot_top1", "agreement_top1", "mean_cosine")


@click.command(
    epilog="""\b
Example:
  pipeline demo --out demo-out
Stopped half-way? Run the same command again."""
)
@click.option("--out", type=FilePath("DIR"), default="demo-out", show_default=True, help="Folder for all of it.")
@shared_options
def command(out: Path, as_json: bool, quiet: bool) -> None:
    """Extract, mine, distil and evaluate on pictures and sentences from installed packages, in about eight minutes."""
    from pipeline.demo.run import run_demo

    report = run_demo(out, quiet=quiet)
    rows = [{"name": "teacher", **report["teacher"]}, *report["students"]]
    print_result(
        report,
        as_json=as_json,
        lines=table(rows, STUDENT_COLUMNS),
        next_step=f"open {shlex.quote(str(out / 'report.html'))}",
    )
