"""Labelled pictures in the layout that CLIP_benchmark calls webdataset.

DATA/
  classnames.txt                           one class per line; the line's place, from 0, is its label
  zeroshot_classification_templates.txt    one prompt per line, `{c}` or `{}` stands for the class
  test/nshards.txt                         optional: how many tars there are
  test/0.tar, 1.tar …                      per picture KEY.jpg (.png, .webp …) and KEY.cls with its label

**Source:** clip_benchmark 1.6, `datasets.builder.build_wds_dataset`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cache_schema.errors import DamagedError, RefusedError, UsageError
from stages.files.class_names import read_entries
from stages.files.keys import first_repeated, hash_of_key
from stages.files.opened import SourceFile, planned_file, read_range
from stages.files.tar_members import TarSample, read_members, samples_in
from stages.images.formats import IMAGE_EXTENSIONS

CLASSES_NAME = "classnames.txt"
TEMPLATES_NAME = "zeroshot_classification_templates.txt"
_MAX_LABEL_BYTES = 64


@dataclass(frozen=True)
class LabelledPicture:
    """One picture of an evaluation set: its undecoded bytes and the place of its class.

    `key` begins with the number of its tar, since keys are unique inside a tar only.
    """

    key: str
    payload: bytes
    label: int


@dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set whose texts are read; pictures are read when asked for.

    Attributes:
        path: the path of the folder.
        class_names: by label.
        templates: prompts with one place for the class.
        shards: tars, in order.
    """

    path: Path
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[Path, ...]

    def prompts(self) -> list[list[str]]:
        """Returns for every class, by label, every template filled with its name."""
        return [
            [template.replace("{c}", name).replace("{}", name) for template in self.templates]
            for name in self.class_names
        ]

    def count_pictures(self) -> int:
        """Returns how many samples the tars hold, from their headers alone; raises `DamagedError` as `pictures`."""
        return sum(len(samples) for samples in self._samples.values())

    def pictures(self) -> Iterator[LabelledPicture]:
        """Yields all pictures in the order of the tars.

        Raises:
            DamagedError: a tar is cut or changed, or a picture has no label or one that is no class; names the key.
        """
        for shard, samples in self._samples.items():
            with planned_file(str(shard)) as file:
                for sample in samples:
                    yield from self._pictures_of(shard, file, sample)

    @cached_property
    def _samples(self) -> dict[Path, list[TarSample]]:
        return {shard: _samples_of(shard) for shard in self.shards}

    def _pictures_of(self, shard: Path, file: SourceFile, sample: TarSample) -> Iterator[LabelledPicture]:
        members = dict(sample.members)
        image = next((members[extension] for extension in members if extension in IMAGE_EXTENSIONS), None)
        if image is None:
            return
        if "cls" not in members:
            raise DamagedError(f"picture {sample.key!r} in {shard} has no label: add {sample.key}.cls beside it")
        cls = members["cls"]
        label = self._label(
            shard, sample.key, read_range(str(shard), file, cls.offset, min(cls.size, _MAX_LABEL_BYTES))
        )
        yield LabelledPicture(
            f"{shard.stem}/{sample.key}", read_range(str(shard), file, image.offset, image.size), label
        )

    def _label(self, shard: Path, key: str, data: bytes) -> int:
        digits = data.decode("ascii", "replace").strip()
        if not digits.isdecimal() or int(digits) >= len(self.class_names):
            raise DamagedError(
                f"{key}.cls in {shard} holds {digits!r}, which is no label of the {len(self.class_names)} classes in "
                f"{self.path / CLASSES_NAME} (0 to {len(self.class_names) - 1}): correct one of them"
            )
        return int(digits)


def open_evaluation_set(path: Path) -> EvaluationSet:
    """Returns the evaluation set in the folder `path`.

    Raises:
        UsageError: a file of the layout is missing or empty, or a template has no place for the class; names it.
    """
    class_names, templates = (_entries_of(path, name) for name in (CLASSES_NAME, TEMPLATES_NAME))
    for number, template in enumerate(templates, start=1):
        if "{c}" not in template and "{}" not in template:
            raise UsageError(
                f"line {number} of {path / TEMPLATES_NAME} is {template!r}, without a place for the class: write {{c}}"
            )
    return EvaluationSet(path, tuple(class_names), tuple(templates), tuple(_shards_of(path)))


def _entries_of(path: Path, name: str) -> list[str]:
    if not (path / name).is_file():
        raise UsageError(f"{path} is no evaluation set: it has no {name}; see the CLIP_benchmark webdataset layout")
    return read_entries(path / name)


def _samples_of(shard: Path) -> list[TarSample]:
    ignored: Counter[str] = Counter()
    with planned_file(str(shard)) as file:
        samples = list(samples_in(read_members(str(shard), file, 0, ignored), ignored))
    repeated = first_repeated(np.fromiter((hash_of_key(sample.key) for sample in samples), np.uint64, len(samples)))
    if repeated is not None:
        first, second = (samples[at] for at in repeated)
        raise RefusedError(
            f"key {second.key!r} comes twice in {shard}, at offset {first.header_offset:,} and again at "
            f"{second.header_offset:,}: the members of a sample must follow one another; write the tar again"
        )
    return samples


def _shards_of(path: Path) -> list[Path]:
    folder = path / "test"
    count = folder / "nshards.txt"
    if count.is_file():
        digits = count.read_text().strip()
        if not digits.isdecimal() or not 1 <= int(digits) <= 1_000_000:
            raise UsageError(f"{count} holds {digits[:20]!r}: write how many tars there are")
        shards = [folder / f"{number}.tar" for number in range(int(digits))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise UsageError(
                f"{folder} lacks {', '.join(missing[:5])} of the {len(shards)} tars that nshards.txt tells"
            )
        return shards
    shards = sorted(folder.glob("*.tar"), key=lambda shard: (len(shard.name), shard.name))
    if not shards:
        raise UsageError(f"{folder} holds no tars: an evaluation set has test/0.tar, test/1.tar …")
    return shards
