"""The sidecar of an index: what the index file is, and what it was built from. The file itself is FAISS's.

An index file is parsed only when its sidecar's SHA-256 is that of the file, and used only when it was built from what
the array holds.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cache_schema import atomic
from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from cache_schema.json_file import Json, read_sealed, seal, typed
from cache_schema.layout import Modality
from cache_schema.sha256 import sha256_of_file

REBUILD = "run `pipeline extract` again to build it"


@dataclass(frozen=True)
class IndexInfo:
    """The description of an index: its kind, its size, and the features that it was built from.

    Attributes:
        modality: the modality of the array.
        array: its name.
        fingerprint: the fingerprint of its recipe.
        digest: its logical digest.
        kind: "flat" (exact) or "ivf" (inverted lists of float16 vectors).
        num_rows: vectors in the index: the array's ok rows.
        dim: width of a vector.
        num_lists: inverted lists, 0 for flat.
        num_probes: lists that a search looks into, 0 for flat.
        recall_at_10: share of the true 10 nearest that a search finds, on rows of the array; 1 for flat.
        sha256: the SHA-256 of the index file.
        faiss: version that wrote it.
    """

    modality: str
    array: str
    fingerprint: str
    digest: str
    kind: str
    num_rows: int
    dim: int
    num_lists: int
    num_probes: int
    recall_at_10: float
    sha256: str
    faiss: str


def publish_index_info(sidecar: Path, info: IndexInfo, *, fence: atomic.Fence | None) -> None:
    """Publishes the sidecar that makes an index exist; the index file is there already."""
    atomic.publish_json(sidecar, seal(asdict(info)), fence=fence)


def read_index_info(sidecar: Path) -> IndexInfo:
    """Returns what `sidecar` says; raises `DamagedError` when it is damaged or describes no index."""
    try:
        return typed(IndexInfo, read_sealed(sidecar))
    except TypeError as error:
        raise DamagedError(f"{sidecar} does not describe an index ({error}): {REBUILD}") from error


def require_current_index(array: CachedArray, name: str) -> IndexInfo:
    """Returns what the index `name` of `array` is, once its file is known to be the one that was built from the array.

    Raises:
        UsageError: there is none.
        UnfinishedError: the array lacks parts.
        MismatchError: it was built from other features.
        DamagedError: it is not the file that was built.
    """
    layout = array.cache.layout
    path, sidecar = (place(array.modality, array.name, name) for place in (layout.index, layout.index_sidecar))
    if not sidecar.exists():
        raise UsageError(f"{array} has no index: {REBUILD}")
    array.require_complete()
    info = read_index_info(sidecar)
    _require_of(array, info, path)
    if sha256_of_file(path) != info.sha256:
        raise DamagedError(f"index {path} is missing or not the file that was built: delete it and {REBUILD}")
    return info


def _require_of(array: CachedArray, info: IndexInfo, path: Path) -> None:
    """Raises `MismatchError` unless the index at `path` was built from what `array` holds now; shows both."""
    fingerprint, digest = array.recipe.fingerprint, array.digest()
    if (info.fingerprint, info.digest) != (fingerprint, digest):
        raise MismatchError(
            f"index {path} was built from features {info.digest[:12]} (recipe {info.fingerprint[:12]}), {array} holds "
            f"{digest[:12]} (recipe {fingerprint[:12]}): {REBUILD}"
        )
    said = (info.modality, info.array, info.num_rows, info.dim)
    has = (array.modality, array.name, array.num_ok, array.recipe.dim)
    if said != has:
        raise MismatchError(f"index {path} is said to be of {said}, {array} is {has} (rows, width): {REBUILD}")


def describe_indexes(cache: Cache, modalities: Iterable[Modality] | None = None) -> list[dict[str, Json]]:
    """Returns, for every index, its modality, name, array, kind, rows and recall, and whether it is of its array now.

    Reads sidecars, not the index files. Without `modalities` it looks at all of them.
    """
    found = []
    for modality in cache.modalities if modalities is None else modalities:
        for sidecar in cache.layout.index_sidecars(modality):
            info, state = None, "current"
            try:
                info = _info_of(cache, modality, sidecar)
            except MismatchError:
                info, state = read_index_info(sidecar), "stale: run `pipeline extract` again"
            except (RefusedError, UsageError) as error:
                state = str(error)
            shown = {name: getattr(info, name, None) for name in ("array", "kind", "num_rows", "recall_at_10")}
            found.append({"modality": modality, "index": sidecar.stem, "state": state, **shown})
    return found


def verify_indexes(cache: Cache, report: Callable[[Path, str, str], None]) -> None:
    """Calls `report(where, what, remedy)` for everything wrong with any index of `cache`."""
    remedy = "run `pipeline extract` again to build it anew"
    for modality in cache.modalities:
        for sidecar in cache.layout.index_sidecars(modality):
            index = sidecar.with_suffix(".faiss")
            try:
                if sha256_of_file(index) != read_index_info(sidecar).sha256:
                    report(index, "is missing or not the index that was built", remedy)
                _info_of(cache, modality, sidecar)
            except MismatchError as error:
                report(index, str(error), remedy)
            except (RefusedError, UsageError) as error:
                report(sidecar, str(error), remedy)


def _info_of(cache: Cache, modality: Modality, sidecar: Path) -> IndexInfo:
    """Returns what `sidecar` says; raises `MismatchError` where its array has other features now."""
    info = read_index_info(sidecar)
    array = cache.array(modality, info.array)
    if not sidecar.name.startswith(f"{info.array}."):
        raise DamagedError(f"{sidecar} describes an index of {array}: delete it")
    _require_of(array, info, sidecar.with_suffix(".faiss"))
    return info
