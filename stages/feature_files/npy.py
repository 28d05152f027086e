"""A plain matrix with its keys beside it: `npy:FEATURES.npy`, and FEATURES.parquet with columns `key` and `text`."""

import os
from typing import ClassVar, Self

from cache_schema.errors import UsageError
from cache_schema.layout import Modality
from stages.feature_files.pair import MatrixWithTable
from stages.files.opened import is_remote
from stages.files.uris import parse_uri, paths_of


class NpyFeatures(MatrixWithTable):
    """A .npy matrix. Options: `keys` (the Parquet file), `key_column`, `text_column`, and `prefix`, cut off keys."""

    format: ClassVar[str] = "npy"
    extensions: ClassVar[tuple[str, ...]] = (".npy",)
    option_names: ClassVar[tuple[str, ...]] = ("keys", "key_column", "text_column", "prefix")

    @classmethod
    def expand(cls, path: str, modality: Modality, options: dict[str, str]) -> list[Self]:
        """Returns the one file at `path`; raises `UsageError` when its table is not there."""
        if "keys" in options:
            (keys, *more) = paths_of(parse_uri(options["keys"], ()).pattern, options["keys"])
            if more:
                raise UsageError(f"?keys={options['keys']} names {1 + len(more)} files: name the one beside {path}")
            options = {**options, "keys": keys}
        features = cls(path, modality, options)
        if not is_remote(features.table_uri) and not os.path.isfile(features.table_uri):
            raise UsageError(
                f"{path} does not say whose features it holds, and {features.table_uri} is not there: put a Parquet "
                "file with a column `key` there, one row per feature, or name it with ?keys=PATH"
            )
        return [features]

    @property
    def table_uri(self) -> str:
        """The Parquet file of the same name, or the one given."""
        return self.options.get("keys", os.path.splitext(self.uri)[0] + ".parquet")
