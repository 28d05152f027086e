"""Finds features by their keys, over several files, in about 30 bytes a row."""

from collections.abc import Sequence

import numpy as np

from cache_schema.errors import RefusedError, UsageError
from stages.feature_files.base import FeatureFile, FeatureRow, ScannedFeatures
from stages.files.keys import hash_of_key


class FeatureIndex:
    """Finds the features of samples by their keys.

    Args:
        files: the files of features, each with its scan.

    Raises:
        RefusedError: a key stands in two files; both are named.
        UsageError: a file has no keys.
    """

    def __init__(self, files: Sequence[tuple[FeatureFile, ScannedFeatures]]) -> None:
        self._files = [file for file, _ in files]
        for file, scan in files:
            if not len(scan.key_hashes):
                raise UsageError(
                    f"the rows of {file.uri} have no keys, so nobody knows which sample each belongs to: name their "
                    "column with ?key_column=NAME, or leave out --texts to take the sentences that stand beside them"
                )
        hashes = np.concatenate([np.zeros(0, np.uint64), *(scan.key_hashes for _, scan in files)])
        order = np.argsort(hashes, kind="stable")
        numbers = [np.full(len(scan.places), number, np.int32) for number, (_, scan) in enumerate(files)]
        self._hashes = hashes[order]
        self._file_of = np.concatenate([np.zeros(0, np.int32), *numbers])[order]
        self._places = np.concatenate([np.zeros(0, np.int64), *(scan.places for _, scan in files)])[order]
        self._refuse_repeated()

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, key_hashes: np.ndarray) -> np.ndarray:
        """Returns for each uint64 key hash the number of its feature, int64, -1 where there is none."""
        at = np.searchsorted(self._hashes, key_hashes)
        there = at < len(self._hashes)
        there[there] = self._hashes[at[there]] == key_hashes[there]
        return np.where(there, at, -1)

    def read(self, keys: Sequence[str]) -> list[FeatureRow | None]:
        """Returns the feature of every key, in the order asked; None where there is none. All are held in memory."""
        numbers = self.find(np.fromiter(map(hash_of_key, keys), np.uint64, len(keys)))
        found: list[FeatureRow | None] = [None] * len(keys)
        for number, file in enumerate(self._files):
            wanted = np.flatnonzero((numbers >= 0) & (self._file_of[numbers] == number))
            rows = file.read(self._places[numbers[wanted]].tolist()) if len(wanted) else []
            for at, row in zip(wanted.tolist(), rows, strict=True):
                # Two keys may have one hash; the key itself decides.
                found[at] = row if row.key == keys[at] else None
        return found

    def example(self) -> str:
        """Returns one key, for a message."""
        return self._files[int(self._file_of[0])].read([int(self._places[0])])[0].key

    def _refuse_repeated(self) -> None:
        repeated = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(repeated):
            first, second = (self._files[int(self._file_of[at])] for at in (repeated[0], repeated[0] + 1))
            key = second.read([int(self._places[repeated[0] + 1])])[0].key
            raise RefusedError(
                f"key {key!r} has a feature in {first.uri} and another one in {second.uri}: keys must be unique among "
                "files that are imported together; rename one, or import the files one after the other"
            )
