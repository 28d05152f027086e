"""The output of clip-retrieval's inference: `clip-retrieval:FOLDER` with img_emb/, text_emb/ and metadata/.

**Source:** `NumpyWriter` of clip-retrieval (clip_retrieval/clip_inference/writer.py): float16 of unit norm, after the
projection, in img_emb/img_emb_N.npy and text_emb/text_emb_N.npy; row i of metadata/metadata_N.parquet, with the columns
`image_path` and `caption`, belongs to row i of both. N is padded with zeros. A number may be missing: a partition in
which nothing could be read writes no file.
"""

import os
import re
from typing import ClassVar, Self

from cache_schema.errors import RefusedError, UsageError
from cache_schema.layout import Modality
from stages.feature_files.pair import MatrixWithTable

_NAMES: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}


class ClipRetrievalFeatures(MatrixWithTable):
    """One partition. Options: `key_column` (image_path), `text_column` (caption) and `prefix`, cut off keys.

    `image_path` is the path as clip-retrieval was given it, or the key in its tar; with `prefix` it becomes the key of
    an original.
    """

    format: ClassVar[str] = "clip-retrieval"
    extensions: ClassVar[tuple[str, ...]] = ()
    option_names: ClassVar[tuple[str, ...]] = ("key_column", "text_column", "prefix")
    _default_key_column = "image_path"
    _default_text_column = "caption"

    @classmethod
    def expand(cls, path: str, modality: Modality, options: dict[str, str]) -> list[Self]:
        """Returns every partition of the output folder at `path`, or the one that `path` is, by number.

        Raises:
            UsageError: there is none.
            RefusedError: a matrix has no table, or a table has no matrix.
        """
        if os.path.isfile(path):
            return [cls(path, modality, options)]
        name = _NAMES[modality]
        matrices, tables = _numbered(path, name, "npy"), _numbered(path, "metadata", "parquet")
        if not matrices:
            raise UsageError(f"{path} holds no {name}/{name}_*.npy: point at the output folder of clip-retrieval")
        alone = sorted(matrices.keys() ^ tables.keys())
        if alone:
            there = matrices.get(alone[0]) or tables[alone[0]]
            lacking = f"metadata_{alone[0]}.parquet" if alone[0] in matrices else f"{name}_{alone[0]}.npy"
            raise RefusedError(
                f"{there} has no {lacking} to go with it ({len(alone)} of {len(matrices | tables)} partitions are "
                "incomplete): fetch them again, or name the whole ones"
            )
        return [cls(matrices[number], modality, options) for number in sorted(matrices, key=int)]

    @property
    def table_uri(self) -> str:
        """The metadata of the same number."""
        folder, base = os.path.split(self.uri)
        number = os.path.splitext(base)[0].rpartition("_")[2]
        return os.path.join(os.path.dirname(folder), "metadata", f"metadata_{number}.parquet")


def _numbered(folder: str, name: str, extension: str) -> dict[str, str]:
    """Returns number as written -> path of the files NAME/NAME_NUMBER.EXTENSION below `folder`."""
    inside = os.path.join(folder, name)
    names = os.listdir(inside) if os.path.isdir(inside) else []
    found = (re.fullmatch(rf"{name}_([0-9]+)\.{extension}", base) for base in names)
    return {match[1]: os.path.join(inside, match[0]) for match in found if match}
