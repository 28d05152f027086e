"""The only place that spells the names of files inside a cache."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cache_schema.errors import UsageError

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


def check_name(name: str, kind: str) -> str:
    """Returns `name` when it can name a `kind` of thing (array, index, neighbours, selection) inside a cache.

    Raises:
        UsageError: the name is empty, long, or has characters that could leave the folder or differ between systems.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise UsageError(
            f"{name!r} cannot name a {kind}: use up to 80 lower-case letters, digits, dots, dashes and underscores"
        )
    return name


@dataclass(frozen=True)
class Layout:
    """The paths of everything in the cache at `root`. Nothing is created or read here."""

    root: Path

    @property
    def cache_json(self) -> Path:
        return self.root / "cache.json"

    @property
    def lock_json(self) -> Path:
        return self.root / "lock.json"

    @property
    def under_way_json(self) -> Path:
        """The part that the process which holds the lock works on, where it works itself."""
        return self.root / "under_way.json"

    def modality(self, modality: Modality) -> Path:
        return self.root / modality

    def part_files(self, modality: Modality) -> set[Path]:
        """Returns every file below `modality` that can belong to a part, except records."""
        patterns = (
            "features.zarr/*/c/*/0",
            "samples/*.parquet",
            "pixels/*.arrow",
            "arrays/*/records/*.rows",
            "arrays/*/records/*.views",
            "arrays/*/records/*.withdrawn",
        )
        return {path for pattern in patterns for path in self.modality(modality).glob(pattern)}

    def plan(self, modality: Modality) -> Path:
        return self.root / modality / "plan.json"

    @property
    def pixels_json(self) -> Path:
        """The recipe of the stored pixels."""
        return self.root / "image" / "pixels.json"

    @property
    def all_pixels(self) -> Path:
        return self.root / "image" / "pixels"

    def pixels(self, part: int) -> Path:
        return self.all_pixels / f"{part:05d}.arrow"

    def pixels_record(self, part: int) -> Path:
        return self.all_pixels / f"{part:05d}.json"

    def samples(self, modality: Modality, part: int) -> Path:
        return self.root / modality / "samples" / f"{part:05d}.parquet"

    def features(self, modality: Modality) -> Path:
        """The Zarr group that holds one Zarr array per array name."""
        return self.root / modality / "features.zarr"

    def feature_array(self, modality: Modality, array: str) -> Path:
        """The Zarr array of the features of `array`."""
        return self.features(modality) / array

    def arrays(self, modality: Modality) -> Path:
        return self.root / modality / "arrays"

    def array_names(self, modality: Modality) -> list[str]:
        """Returns the names of the arrays that have anything in their folder, sorted."""
        return _folders_in(self.arrays(modality))

    def recipe(self, modality: Modality, array: str) -> Path:
        return self.arrays(modality) / array / "recipe.json"

    def probes(self, modality: Modality, array: str) -> Path:
        return self.arrays(modality) / array / "probes.npz"

    def batch_size(self, modality: Modality, array: str) -> Path:
        """The rows of a batch that were measured for the teacher, by the name of the GPU."""
        return self.arrays(modality) / array / "batch_size.json"

    def records(self, modality: Modality, array: str) -> Path:
        return self.arrays(modality) / array / "records"

    def record(self, modality: Modality, array: str, part: int) -> Path:
        return record_path(self.records(modality, array), part)

    def row_hashes(self, modality: Modality, array: str, part: int) -> Path:
        return row_hashes_path(self.records(modality, array), part)

    def view_checks(self, modality: Modality, array: str, part: int) -> Path:
        """4 bytes per planned row of the part, beside the record of a view that is a crop."""
        return self.records(modality, array) / f"{part:05d}.views"

    def withdrawn(self, modality: Modality, array: str, part: int) -> Path:
        """The note on a part whose record was taken back."""
        return self.records(modality, array) / f"{part:05d}.withdrawn"

    def indexes(self, modality: Modality) -> Path:
        return self.root / modality / "indexes"

    def index_files(self, modality: Modality) -> list[Path]:
        """Returns the index files that are there, with a sidecar or without, sorted."""
        return sorted(self.indexes(modality).glob("*.faiss"))

    def index_sidecars(self, modality: Modality) -> list[Path]:
        """Returns the sidecars that are there, sorted."""
        return sorted(self.indexes(modality).glob("*.json"))

    def index(self, modality: Modality, array: str, name: str) -> Path:
        return self.indexes(modality) / f"{array}.{name}.faiss"

    def index_sidecar(self, modality: Modality, array: str, name: str) -> Path:
        return self.indexes(modality) / f"{array}.{name}.json"

    @property
    def all_neighbours(self) -> Path:
        return self.root / "neighbours"

    def neighbours_names(self) -> list[str]:
        """Returns the names of the neighbours that have anything in their folder, sorted."""
        return _folders_in(self.all_neighbours)

    def neighbours(self, name: str) -> Path:
        """The folder of the mined neighbours called `name`."""
        return self.all_neighbours / name

    def neighbours_recipe(self, name: str) -> Path:
        return self.neighbours(name) / "recipe.json"

    def neighbours_records(self, name: str) -> Path:
        return self.neighbours(name) / "records"

    def neighbours_record(self, name: str, part: int) -> Path:
        return record_path(self.neighbours_records(name), part)

    def neighbours_group(self, name: str) -> Path:
        """The Zarr group that holds the two arrays of the neighbours called `name`."""
        return self.neighbours(name) / "neighbours.zarr"

    def neighbours_array(self, name: str, array: Literal["ids", "scores"]) -> Path:
        return self.neighbours_group(name) / array

    @property
    def all_selections(self) -> Path:
        return self.root / "selections"

    def selection_names(self) -> list[str]:
        """Returns the names of the selections, sorted."""
        return sorted(path.stem for path in self.all_selections.glob("*.json"))

    def selection_files(self) -> list[Path]:
        """Returns the lists of rows that are there, with a sidecar or without, sorted."""
        return sorted(self.all_selections.glob("*.parquet"))

    def selection(self, name: str) -> Path:
        return self.all_selections / f"{name}.parquet"

    def selection_sidecar(self, name: str) -> Path:
        """The origin and method of the selection; without this file the selection does not exist."""
        return self.all_selections / f"{name}.json"


def metadata_path(folder: Path) -> Path:
    """Returns the file that makes `folder` a Zarr v3 array or group."""
    return folder / "zarr.json"


def shard_path(array_folder: Path, part: int) -> Path:
    """Returns the file of the shard of `part` in the two-dimensional Zarr v3 array at `array_folder`."""
    return array_folder / "c" / str(part) / "0"


def record_path(records: Path, part: int) -> Path:
    """Returns the file of the record of `part` in the folder `records`."""
    return records / f"{part:05d}.json"


def row_hashes_path(records: Path, part: int) -> Path:
    """Returns the file with 16 bytes per planned row of `part`, beside its record."""
    return records / f"{part:05d}.rows"


def _folders_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/"))
