"""Features that others computed: one class per format, and the registry.

To add a format, write a class with the methods of `base.FeatureFile` in a file of its own and name it in `FORMATS`.
"""

import os

from cache_schema.errors import UsageError, unknown_name
from cache_schema.layout import Modality
from stages.feature_files.base import FeatureFile, FeatureRow, ScannedFeatures
from stages.feature_files.clip_retrieval import ClipRetrievalFeatures
from stages.feature_files.dime_fm import DimeFmFeatures
from stages.feature_files.npy import NpyFeatures
from stages.feature_files.parquet import ParquetFeatures
from stages.files.opened import state_of
from stages.files.uris import parse_uri, paths_of

__all__ = ["FORMATS", "FeatureFile", "FeatureRow", "ScannedFeatures", "expand_features", "open_features", "scan_once"]

FORMATS: dict[str, type[FeatureFile]] = {
    "clip-retrieval": ClipRetrievalFeatures,
    "dime-fm": DimeFmFeatures,
    "npy": NpyFeatures,
    "parquet": ParquetFeatures,
}


def expand_features(uri: str, modality: Modality) -> list[FeatureFile]:
    """Returns one `FeatureFile` per file that `uri` names, in the order of the names.

    Forms are those of sources: a path, a glob or braces, with a format before (`dime-fm:image_00.feat.tsv`) and options
    after it (`features.npy?key_column=id`). Where no format is given, a folder is `clip-retrieval` and a file is what
    its extension says.

    Raises:
        UsageError: nothing is there, or the format or an option is unknown.
    """
    parsed = parse_uri(uri, FORMATS)
    found: list[FeatureFile] = []
    for path in paths_of(parsed.pattern, uri):
        name = parsed.kind or _format_of(path)
        for option in parsed.options:
            if option not in FORMATS[name].option_names:
                raise unknown_name(f"option of {name} features", option, FORMATS[name].option_names)
        found += FORMATS[name].expand(path, modality, dict(parsed.options))
    return found


def open_features(uri: str, name: str, modality: Modality, options: dict[str, str]) -> FeatureFile:
    """Returns the file of features at the absolute path `uri`, of the format called `name`. Nothing is opened yet."""
    if name not in FORMATS:
        raise unknown_name("format of features", name, FORMATS)
    return FORMATS[name](uri, modality, dict(options))


def states_of(file: FeatureFile) -> dict[str, dict[str, int]]:
    """Returns path -> numbers that stay the same as long as the file does, for everything that `file` reads."""
    return {path: state_of(path) for path in file.paths}


def scan_once(file: FeatureFile) -> ScannedFeatures:
    """Returns `file.scan()`, from memory when this process scanned the unchanged file before."""
    states = str((states_of(file), sorted(file.options.items())))
    key = (file.format, file.uri, file.modality)
    if key not in _SCANS or _SCANS[key][0] != states:
        _SCANS[key] = (states, file.scan())
    return _SCANS[key][1]


# A plan and an index of keys both need the scan, and it reads everything.
_SCANS: dict[tuple[str, str, Modality], tuple[str, ScannedFeatures]] = {}


def _format_of(path: str) -> str:
    if os.path.isdir(path):
        return "clip-retrieval"
    for name, features in FORMATS.items():
        if path.lower().endswith(features.extensions):
            return name
    raise UsageError(
        f"cannot tell from its name what format of features {path} has: write it before the path, as in npy:{path} "
        f"(formats: {', '.join(FORMATS)})"
    )
