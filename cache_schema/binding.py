"""Bindings: what is derived from features holds for the parts that it was made from, and for no others."""

from collections.abc import Mapping
from dataclasses import dataclass

from cache_schema.cache import CachedArray
from cache_schema.errors import MismatchError, UnfinishedError
from cache_schema.json_file import Json
from cache_schema.layout import MODALITIES, Modality
from cache_schema.records import digests_of_beginnings, logical_digest


@dataclass(frozen=True)
class Binding:
    """The first parts of one array, with all their rows.

    A part that is appended later leaves a binding whole. Other rows in one of its parts, or another recipe, do not.

    Attributes:
        modality: the modality of the array.
        array: its name.
        fingerprint: the fingerprint of its recipe.
        digest: logical digest of the parts; it covers keys, statuses, sample digests and features.
        num_parts: how many parts, from the first on; None where nobody wrote it down: as many as have the digest.
    """

    modality: Modality
    array: str
    fingerprint: str
    digest: str
    num_parts: int | None = None

    @classmethod
    def of(cls, array: CachedArray) -> "Binding":
        """Returns the binding to all planned parts of `array`.

        Raises:
            UnfinishedError: one of them is not committed.
            DamagedError: one of them is damaged.
        """
        digest = _digest_of(array, array.plan.num_parts)
        return cls(array.modality, array.name, array.recipe.fingerprint, digest, array.plan.num_parts)

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> "Binding":
        """Returns the binding with these fields; raises `TypeError` or `ValueError` when they are those of none."""
        binding = cls(**value)
        if binding.modality not in MODALITIES:
            raise ValueError(f"modality {binding.modality!r}")
        return binding

    def require_whole(self, array: CachedArray, what: str, remedy: str) -> int:
        """Returns how many parts of `array`, from the first on, are bound, once they are known to be as they were.

        Args:
            array: the one of that name, as it is now.
            what: is bound, for messages.
            remedy: likewise.

        Raises:
            MismatchError: one of the parts has other rows now, or the array another recipe, or fewer parts.
            UnfinishedError: one of the parts is no longer committed.
        """
        if self.num_parts is not None and self.num_parts > array.plan.num_parts:
            raise MismatchError(
                f"{what} came from {self.num_parts} parts, {array} has {array.plan.num_parts}: {remedy}"
            )
        num_parts = self.num_parts or array.plan.num_parts
        digest = _digest_of(array, num_parts)
        if self.num_parts is None and digest != self.digest:
            beginnings = digests_of_beginnings(array.row_hashes(part) for part in range(num_parts))
            found = next((number for number, one in enumerate(beginnings, start=1) if one == self.digest), None)
            num_parts, digest = (num_parts, digest) if found is None else (found, self.digest)
        if (digest, array.recipe.fingerprint) != (self.digest, self.fingerprint):
            raise MismatchError(
                f"{what} came from parts of {self.modality} {self.array} with digest {self.digest[:12]} (recipe "
                f"{self.fingerprint[:12]}), its first {num_parts} parts have {digest[:12]} (recipe "
                f"{array.recipe.fingerprint[:12]}): {remedy}"
            )
        return num_parts


def _digest_of(array: CachedArray, num_parts: int) -> str:
    missing = [part for part in range(num_parts) if part not in array.committed]
    if missing:
        raise UnfinishedError(
            f"{array} lacks {len(missing)} of {num_parts} parts ({', '.join(map(str, missing[:10]))}): "
            "run `pipeline extract` again to finish it"
        )
    if num_parts == len(array.committed):
        return array.digest()
    return logical_digest(array.row_hashes(part) for part in range(num_parts))
