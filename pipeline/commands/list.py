"""`pipeline list`: what there is to choose from."""

import importlib
import inspect
import re
import sys
from typing import Any

import click

from pipeline.options.shared import shared_options
from pipeline.options.types import Choice
from pipeline.output import print_result, table

# What is listed -> where its registry is, the form of an entry that does not show one, and the option that takes it.
REGISTRIES = {
    "teachers": ("stages.teachers", "TEACHERS", "{name}:...", "--teacher"),
    "students": ("stages.students", "STUDENTS", "{name}:...", "--student"),
    "sources": ("stages.sources", "SOURCES", "{name}:PATH", "--images and --texts"),
    "formats": (
        "stages.feature_files",
        "FORMATS",
        "{name}:PATH",
        "--image-features and --text-features of `pipeline import`",
    ),
    "losses": ("stages.distill.losses", "LOSSES", "{name}", "the loss settings of `pipeline distill`"),
}

SOURCE_COLUMNS = ("of", "extensions", "options")


@click.command(
    epilog="""\b
Example:
  pipeline list teachers"""
)
@click.argument("what", type=Choice(tuple(REGISTRIES)))
@shared_options
def command(what: str, as_json: bool, quiet: bool) -> None:
    """List the teachers, students, sources, formats of features or losses, each with its form and one line about it."""
    module, registry, form, options = REGISTRIES[what]
    entries = getattr(importlib.import_module(module), registry)
    found = [_described(name, entry, form, module) for name, entry in entries.items()]
    columns = ("name", *SOURCE_COLUMNS, "description") if what == "sources" else ("name", "form", "description")
    lines = [*table(found, columns), f"for {options}"]
    print_result({what: found}, as_json=as_json, lines=lines)


def _described(name: str, entry: Any, form: str, registry_module: str) -> dict[str, str]:
    """Returns name, form and one line about an entry, from its docstring and that of the file it has to itself.

    The form is what stands between backticks and begins with `name:`, several of them with a bar between.
    """
    own_file = "" if entry.__module__ == registry_module else _documentation(sys.modules[entry.__module__])
    documentation = _documentation(entry)
    forms = dict.fromkeys(re.findall(f"`({name}:[^`…]+)`", f"{own_file}\n{documentation}"))
    # A function's docstring says what it returns; the file around it says what kind of thing that is.
    described = own_file if inspect.isfunction(entry) and own_file else documentation
    return {
        "name": name,
        "form": " | ".join(forms) or form.format(name=name),
        **(_facts_of_source(entry) if registry_module == "stages.sources" else {}),
        "description": described.partition("\n")[0].replace("`", ""),
    }


def _facts_of_source(kind: Any) -> dict[str, str]:
    """Returns what a kind of source holds, its extensions (without those of compressions), and its options."""
    plain = [name for name in kind.extensions if not any(name.startswith(f"{other}.") for other in kind.extensions)]
    return {"of": " ".join(kind.modalities), "extensions": " ".join(plain), "options": " ".join(kind.option_names)}


def _documentation(thing: Any) -> str:
    return inspect.getdoc(thing) or ""
