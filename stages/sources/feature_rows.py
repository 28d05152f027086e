"""Imported features whose pictures nobody gave: the payload of a sample is its vector as it stands in the file."""

from collections.abc import Iterator
from typing import ClassVar

from cache_schema.errors import MismatchError, UsageError
from cache_schema.layout import Modality
from cache_schema.plan import Plan
from stages.feature_files import FeatureFile, FeatureRow, open_features, scan_once
from stages.sources.base import RawSample, ScannedSource


class FeaturesSource:
    """Images known by their features alone, as `pipeline import` plans them without `--images`; nothing to look at."""

    kind: ClassVar[str] = "features"
    modalities: ClassVar[tuple[Modality, ...]] = ("image",)
    extensions: ClassVar[tuple[str, ...]] = ()
    option_names: ClassVar[tuple[str, ...]] = ("format", "keys", "column", "key_column", "text_column", "prefix")

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options

    def scan(self) -> ScannedSource:
        """Reads the file of features once; raises what its format does."""
        scan = scan_once(self.features())
        return ScannedSource(scan.fingerprint, len(scan.places), scan.places, scan.key_hashes)

    def features(self) -> FeatureFile:
        """Returns the file of features itself."""
        options = {name: value for name, value in self.options.items() if name != "format"}
        return open_features(self.uri, self.options.get("format", "npy"), self.modality, options)

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields rows from the place `offset_bytes` on; raises `MismatchError` when the file ends early."""
        num_read = 0
        for row in self.features().stream(first_sample, num_samples, offset_bytes):
            yield raw_sample_of(row)
            num_read += 1
        if num_read < num_samples:
            raise MismatchError(
                f"{self.uri} holds {first_sample + num_read:,} features, the plan has more: it changed; restore it"
            )

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns the bytes of one vector; raises `RefusedError` when it is not there any more."""
        (row,) = self.features().read([offset_bytes])
        payload = raw_sample_of(row).payload
        if payload is None or row.key != key or len(payload) != size_bytes:
            raise MismatchError(f"{key!r} in {self.uri} is not the planned feature: it changed; restore it")
        return payload


def require_pictures(plan: Plan, cache: object) -> None:
    """Raises `UsageError` when images of the plan of `cache` are known by their features alone."""
    alone = [entry for entry in plan.sources if entry.kind == FeaturesSource.kind]
    if alone:
        raise UsageError(
            f"{sum(entry.num_samples for entry in alone):,} images of {cache} were imported as features without "
            f"pictures ({alone[0].uri}), so there is nothing to look at: import them into a new cache with --images "
            "naming their originals"
        )


def raw_sample_of(row: FeatureRow) -> RawSample:
    """Returns a row of features as a sample whose payload is the vector's bytes."""
    if row.values is None:
        return RawSample(row.key, None, row.place, 0, row.status, row.reason)
    payload = row.values.tobytes()
    return RawSample(row.key, payload, row.place, len(payload))
