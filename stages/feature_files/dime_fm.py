"""TSV files of features as DIME-FM ships them: `dime-fm:NAME.feat.tsv`, each line KEY, tab, base64 of float32 values.

**Source:** `TSVImageDataset._decode_feat` of the official DIME-FM code (Training/datasets/tsv.py). The official reader
joins features and samples by line number; here the keys that both files carry join them.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import numpy as np

from cache_schema.errors import MismatchError, RefusedError
from cache_schema.layout import Modality
from cache_schema.sha256 import sha256_of
from stages.feature_files.base import FEATURE_ENCODING, MAX_DIM, FeatureRow, HashedFile, ScannedFeatures, SourceAddress
from stages.files.keyed_lines import KeyedLine, keyed_lines, require_line_index
from stages.files.keys import first_repeated, hash_of_key
from stages.files.lines import LineCheck, refuse_nothing
from stages.files.opened import SourceFile, planned_file, read_range
from stages.files.strict_base64 import decoded_base64

_MAX_BASE64_BYTES = MAX_DIM * 4 * 2
_NEAR_BYTES = 1 << 20
_SHORT_CHUNK_BYTES = 1 << 16


class DimeFmFeatures:
    """A TSV of features. No options. Lines of another width than most are bad rows; a cut file is refused."""

    format: ClassVar[str] = "dime-fm"
    extensions: ClassVar[tuple[str, ...]] = (".tsv",)
    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options

    @classmethod
    def expand(cls, path: str, modality: Modality, options: dict[str, str]) -> list[Self]:
        """Returns the one file at `path`."""
        return [cls(path, modality, options)]

    @property
    def paths(self) -> tuple[str, ...]:
        """The file itself."""
        return (self.uri,)

    def scan(self) -> ScannedFeatures:
        """Reads the file once; a `.lineidx` beside it must agree.

        Raises:
            DamagedError: it has 0 bytes or a hole of zero bytes, is cut, a line has no key, or its `.lineidx` ends
                elsewhere.
            RefusedError: a key stands twice, or no line can hold float32 values.
        """
        offsets, hashes = array("q"), array("Q")
        widths: Counter[int] = Counter()
        with planned_file(self.uri) as file:
            hashed = HashedFile(file)
            refuse_nothing(self.uri, file.size_bytes)
            for line in keyed_lines(self.uri, hashed, check=LineCheck(self.uri)):
                offsets.append(line.offset_bytes)
                hashes.append(hash_of_key(line.key))
                widths[_width_of(line.value_bytes)] += 1
        require_line_index(self.uri, offsets[-1])
        dim = widths.most_common(1)[0][0]
        if not 1 <= dim <= MAX_DIM:
            raise RefusedError(
                f"{self.uri}: most lines hold no base64 of 1 to {MAX_DIM:,} float32 values: point at a file of features"
            )
        key_hashes = np.frombuffer(hashes, np.uint64)
        self._refuse_repeated(key_hashes, offsets)
        fingerprint = sha256_of(b"dime-fm" + hashed.sha256.digest())
        return ScannedFeatures(fingerprint, dim, np.frombuffer(offsets, np.int64), key_hashes)

    def stream(self, first_row: int, num_rows: int, place: int) -> Iterator[FeatureRow]:
        """Yields the lines from byte `place` on."""
        if num_rows == 0:
            return
        with planned_file(self.uri) as file:
            for number, line in enumerate(keyed_lines(self.uri, file, offset_bytes=place), start=1):
                yield self._row(file, line)
                if number == num_rows:
                    return

    def read(self, places: Sequence[int]) -> list[FeatureRow]:
        """Returns the lines that start at these bytes, in the order asked; near ones are found in one pass."""
        found: dict[int, FeatureRow] = {}
        with planned_file(self.uri) as file:
            for near in _near_together(sorted(set(places))):
                wanted = set(near)
                chunk_bytes = _NEAR_BYTES if len(near) > 1 else _SHORT_CHUNK_BYTES
                for line in keyed_lines(self.uri, file, offset_bytes=near[0], chunk_bytes=chunk_bytes):
                    if line.offset_bytes in wanted:
                        found[line.offset_bytes] = self._row(file, line)
                    if line.offset_bytes >= near[-1]:
                        break
        if len(found) < len(set(places)):
            raise MismatchError(f"{self.uri} changed since it was scanned: restore it and run again")
        return [found[place] for place in places]

    def sentences(self) -> SourceAddress | None:
        """Returns None: sentences stand in a TSV of their own."""
        return None

    def _row(self, file: SourceFile, line: KeyedLine) -> FeatureRow:
        place = line.offset_bytes
        if line.value_bytes < 0:
            return FeatureRow(line.key, None, place, FEATURE_ENCODING, "no second column")
        if line.value_bytes > _MAX_BASE64_BYTES:
            return FeatureRow(line.key, None, place, FEATURE_ENCODING, f"over {_MAX_BASE64_BYTES} bytes")
        column = read_range(self.uri, file, line.value_offset, line.value_bytes).strip()
        data = decoded_base64(column)
        if data is None:
            return FeatureRow(line.key, None, place, FEATURE_ENCODING, "not base64")
        if len(data) % 4:
            return FeatureRow(line.key, None, place, FEATURE_ENCODING, "not float32")
        return FeatureRow(line.key, np.frombuffer(data, "<f4"), place)

    def _refuse_repeated(self, key_hashes: np.ndarray, offsets: "array[int]") -> None:
        repeated = first_repeated(key_hashes)
        if repeated is not None:
            key = self.read([offsets[repeated[1]]])[0].key
            raise RefusedError(
                f"{self.uri}: key {key!r} stands in line {repeated[0] + 1:,} and again in line {repeated[1] + 1:,}: "
                "keys must be unique; rename one of them"
            )


def _width_of(base64_bytes: int) -> int:
    """Returns the number of float32 values in base64 of that length; 0 where no number of them gives it."""
    quads = max(0, base64_bytes) // 4
    return next((size // 4 for size in range(3 * quads - 2, 3 * quads + 1) if size > 0 and size % 4 == 0), 0)


def _near_together(places: list[int]) -> Iterator[list[int]]:
    near: list[int] = []
    for place in places:
        if near and place - near[-1] > _NEAR_BYTES:
            yield near
            near = []
        near.append(place)
    if near:
        yield near
