"""Sources of samples: one class per kind, and the registry.

To add a kind, write a class with the methods of `base.Source` in a file of its own and name it in `SOURCES`.
"""

import os

from cache_schema.errors import UsageError, unknown_name
from cache_schema.layout import Modality
from stages.files.opened import is_remote
from stages.files.uris import parse_uri, paths_of
from stages.sources.base import RawSample, ScannedSource, Source
from stages.sources.csv import CsvSource
from stages.sources.dime_fm import DimeFmSource
from stages.sources.feature_rows import FeaturesSource
from stages.sources.folder import FolderSource
from stages.sources.jsonl import JsonlSource
from stages.sources.parquet import ParquetSource
from stages.sources.tar import TarSource
from stages.sources.text import TextSource

__all__ = ["SOURCES", "Modality", "RawSample", "ScannedSource", "Source", "expand", "open_source"]

SOURCES: dict[str, type[Source]] = {
    "csv": CsvSource,
    "dime-fm": DimeFmSource,
    "features": FeaturesSource,
    "folder": FolderSource,
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "tar": TarSource,
    "text": TextSource,
}


def expand(uri: str, modality: Modality) -> list[Source]:
    """Returns one source per file or folder that `uri` names, in the order of the names.

    Forms: a path, a glob (`*`, `?`, `[…]`, `**`) or braces (`{000..012}`, `{a,b}`), with an optional kind before
    (`text:notes.md`) and options after it (`captions.parquet?column=caption`). Where no kind is given, a folder is a
    `folder` and a file is what its extension says. A relative path is resolved now. An address (`https://…`, `s3://…`)
    stands wherever a path of a file may.

    Raises:
        UsageError: nothing is there, the kind or an option is unknown or does not fit the modality, or the address is
            of a kind that is never read.
        EnvironmentProblem, RefusedError: an object store cannot be listed.
    """
    parsed = parse_uri(uri, SOURCES)
    paths = paths_of(parsed.pattern, uri)
    return [open_source(path, parsed.kind or _kind_of(path, modality), modality, parsed.options) for path in paths]


def open_source(uri: str, kind: str, modality: Modality, options: dict[str, str]) -> Source:
    """Returns the source of a plan entry; `uri` is one absolute path. Nothing is opened yet.

    Args:
        uri: absolute path of one file or folder.
        kind: a name in `SOURCES`.
        modality: `image` or `text`.
        options: those of the kind.

    Raises:
        UsageError: the kind or an option is unknown or does not fit the modality.
    """
    if kind not in SOURCES:
        raise unknown_name("kind of source", kind, SOURCES)
    source_class = SOURCES[kind]
    if kind == "folder" and is_remote(uri):
        raise UsageError(f"a folder of images is read from a local disk only, {uri} is not: pack it into tars")
    if modality not in source_class.modalities:
        fitting = sorted(name for name, other in SOURCES.items() if modality in other.modalities)
        raise UsageError(f"a {kind} source ({uri}) holds no {modality}s: for {modality}s use {', '.join(fitting)}")
    for name in options:
        if name not in source_class.option_names:
            raise unknown_name(f"option of a {kind} source", name, source_class.option_names)
    return source_class(uri, modality, dict(options))


def _kind_of(path: str, modality: Modality) -> str:
    if os.path.isdir(path):
        return "folder"
    name = os.path.basename(path).lower()
    for kind, source_class in SOURCES.items():
        if name.endswith(source_class.extensions):
            return kind
    fitting = sorted(kind for kind, source_class in SOURCES.items() if modality in source_class.modalities)
    raise UsageError(
        f"cannot tell from its name what kind of source {path} is: write the kind before it, "
        f"as in {fitting[-1]}:{path} (kinds of {modality} sources: {', '.join(fitting)})"
    )
