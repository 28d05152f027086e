"""Labelled pictures in the layout that CLIP_benchmark calls webdataset.

DATA/
  classnames.txt                           one class per line; the line's place, from 0, is its label
  zeroshot_classification_templates.txt    one prompt per line, `{c}` or `{}` stands for the class
  dataset_type.txt                         optional: `classification`
  test/nshards.txt                         optional: how many tars there are
  test/0.tar, 1.tar …                      per picture KEY.jpg (.png, .webp …) and KEY.cls with its label

An empty line inside classnames.txt is a class without a name, since the labels count it.

**Source:** clip_benchmark 1.6, `datasets.builder.build_wds_dataset`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter

import numpy as np

from cache_schema.errors import DamagedError, RefusedError, UsageError
from stages.files.class_names import read_entries
from stages.files.keys import first_repeated, hash_of_key
from stages.files.opened import SourceFile, planned_file, read_range
from stages.files.tar_members import Member, TarSample, read_members, samples_in
from stages.sources.tar_rows import images_of

CLASSES_NAME = "classnames.txt"
TEMPLATES_NAME = "zeroshot_classification_templates.txt"
_TYPE_NAME = "dataset_type.txt"
_MAX_LABEL_BYTES = 64
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class LabelledPicture:
    """One picture of an evaluation set: its undecoded bytes and the place of its class.

    `key` begins with the number of its tar, since keys are unique inside a tar only.
    """

    key: str
    payload: bytes
    label: int


@dataclass(frozen=True, slots=True)
class _Pair:
    """Where a picture and its label are."""

    key: str
    image: Member
    label: Member


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
        """Returns for every class, by label, every template filled with its name, in which braces mean nothing."""
        return [[_filled(template, name) for template in self.templates] for name in self.class_names]

    def count_pictures(self) -> int:
        """Returns how many pictures the tars hold, from their headers alone.

        Raises:
            DamagedError: a tar is cut or damaged, or a picture has no label, or a label no picture; names the key.
            RefusedError: a key has several pictures or labels, or comes twice.
        """
        return sum(len(pairs) for pairs in self._pairs.values())

    def notices(self) -> list[str]:
        """Returns what a person should know before believing a measure; raises as `count_pictures`."""
        sentences = []
        if empty := [shard.name for shard, pairs in self._pairs.items() if not pairs]:
            sentences.append(f"{_counted(empty)} of the tars of {self.path} hold no picture and were skipped")
        if beyond := sorted({tar.name for tar in (self.path / "test").glob("*.tar")} - {s.name for s in self.shards}):
            sentences.append(f"{_counted(beyond)} in {self.path / 'test'} are not read: nshards.txt tells fewer tars")
        if nameless := [str(label) for label, name in enumerate(self.class_names) if not name]:
            sentences.append(
                f"labels {_counted(nameless)} of {self.path / CLASSES_NAME} have no name: their lines are empty"
            )
        if shared := [name for name, count in Counter(self.class_names).items() if name and count > 1]:
            sentences.append(
                f"several classes of {self.path / CLASSES_NAME} share a name ({_counted(shared)}): no prompt tells "
                "them apart"
            )
        return sentences

    def pictures(self) -> Iterator[LabelledPicture]:
        """Yields all pictures in the order of the tars.

        Raises:
            DamagedError: a tar changed, or a label is no class; names the key. Otherwise as `count_pictures`.
        """
        for shard, pairs in self._pairs.items():
            with planned_file(str(shard)) as file:
                for pair in pairs:
                    label = self._label(shard, file, pair)
                    payload = read_range(str(shard), file, pair.image.offset, pair.image.size)
                    yield LabelledPicture(f"{shard.stem}/{pair.key}", payload, label)

    @cached_property
    def _pairs(self) -> dict[Path, list[_Pair]]:
        return {shard: _pairs_of(shard) for shard in self.shards}

    def _label(self, shard: Path, file: SourceFile, pair: _Pair) -> int:
        # One byte more than a label may have, so that a longer one is not taken for its beginning.
        data = read_range(str(shard), file, pair.label.offset, min(pair.label.size, _MAX_LABEL_BYTES + 1))
        digits = data.decode("utf-8-sig", "replace").strip()
        is_number = digits.isascii() and digits.isdecimal() and len(data) <= _MAX_LABEL_BYTES
        if not is_number or int(digits) >= len(self.class_names):
            raise DamagedError(
                f"{pair.label.name} in {shard} holds {digits!r}, which is no label of the {len(self.class_names)} "
                f"classes in {self.path / CLASSES_NAME} (0 to {len(self.class_names) - 1}): correct one of them"
            )
        return int(digits)


def open_evaluation_set(path: Path) -> EvaluationSet:
    """Returns the evaluation set in the folder `path`.

    Raises:
        UsageError: a file of the layout is missing or empty, a template has no place for the class, or the set is not
            one of classification; names the file.
    """
    _require_classification(path)
    class_names = _entries_of(path, CLASSES_NAME)
    templates = _entries_of(path, TEMPLATES_NAME)
    while not templates[-1]:
        templates.pop()
    for number, template in enumerate(templates, start=1):
        _require_place(path / TEMPLATES_NAME, number, template)
    return EvaluationSet(path, tuple(class_names), tuple(templates), tuple(_shards_of(path)))


def _counted(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {len(names) - _NAMES_SHOWN:,} more" * (len(names) > _NAMES_SHOWN))


def _filled(template: str, name: str) -> str:
    # Field by field, so that braces in a name are never taken for a place.
    return "".join(text + ("" if field is None else name) for text, field, _, _ in Formatter().parse(template))


def _require_place(path: Path, number: int, template: str) -> None:
    """Raises `UsageError` unless the template has a place for the class, and no other."""
    try:
        fields = [(field, spec, kind) for _, field, spec, kind in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise UsageError(
            f"line {number} of {path} is {template!r}, with a brace that is not of a pair ({error}): write {{c}} for "
            "the class, {{ or }} for a brace"
        ) from error
    if not fields:
        raise UsageError(f"line {number} of {path} is {template!r}, without a place for the class: write {{c}}")
    if any((field, spec, kind) not in (("c", "", None), ("", "", None)) for field, spec, kind in fields):
        raise UsageError(
            f"line {number} of {path} is {template!r}, with a place for something else than the class: write {{c}}"
        )


def _require_classification(path: Path) -> None:
    if not (path / _TYPE_NAME).is_file():
        return
    (word, *_) = read_entries(path / _TYPE_NAME)
    if word.lower() != "classification":
        raise UsageError(
            f"{path / _TYPE_NAME} says {word[:40]!r}: only sets with one label a picture (classification) are measured"
        )


def _entries_of(path: Path, name: str) -> list[str]:
    if not (path / name).is_file():
        raise UsageError(f"{path} is no evaluation set: it has no {name}; see the CLIP_benchmark webdataset layout")
    return read_entries(path / name)


def _pairs_of(shard: Path) -> list[_Pair]:
    ignored: Counter[str] = Counter()
    with planned_file(str(shard)) as file:
        samples = list(samples_in(read_members(str(shard), file, 0, ignored, with_links=True), ignored))
    repeated = first_repeated(np.fromiter((hash_of_key(sample.key) for sample in samples), np.uint64, len(samples)))
    if repeated is not None:
        first, second = (samples[at] for at in repeated)
        raise RefusedError(
            f"key {second.key!r} comes twice in {shard}, at offset {first.header_offset:,} and again at "
            f"{second.header_offset:,}: a key has one picture and one label, which follow one another; write the tar "
            "again"
        )
    return [pair for sample in samples if (pair := _pair_of(shard, sample)) is not None]


def _pair_of(shard: Path, sample: TarSample) -> _Pair | None:
    """Returns the picture of a sample, the one that extract takes, with its label; None of a sample without either."""
    images = images_of(sample)
    label = dict(sample.members).get("cls")
    if len(images) > 1:
        raise RefusedError(
            f"key {sample.key!r} in {shard} has {len(images)} pictures ({', '.join(image.name for image in images)}): "
            "a label belongs to one; write the tar again with a key for each"
        )
    for member in (*images, *([label] if label else [])):
        if member.link:
            raise RefusedError(
                f"{member.name!r} in {shard} is only a {member.link}: write the tar again with the file itself"
            )
    if images and label is None:
        raise DamagedError(f"picture {images[0].name!r} in {shard} has no label: add {sample.key}.cls beside it")
    if label is not None and not images:
        raise DamagedError(
            f"label {label.name!r} in {shard} has no picture (found {', '.join(ext for ext, _ in sample.members)}): "
            f"add one beside it, such as {sample.key}.jpg, or remove it"
        )
    return None if label is None else _Pair(sample.key, images[0], label)


def _shards_of(path: Path) -> list[Path]:
    folder = path / "test"
    count = folder / "nshards.txt"
    if count.is_file():
        digits = " ".join(read_entries(count)).strip()
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
