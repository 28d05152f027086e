"""Which members of a webdataset sample are its rows: its image, or all of them, or its sentences.

Earlier versions took other members in a few tars: sentences from every member that ends in `.txt` or `.json`, no links,
and no JSON behind a byte order mark. `Scan.is_new` says where a tar has such samples: what was planned of it then has
other rows.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

from cache_schema.errors import unknown_name
from stages.files.lines import MAX_LINE_BYTES, SIGNATURE
from stages.files.tar_members import Member, TarSample, split_name
from stages.images.formats import IMAGE_EXTENSIONS
from stages.sources.entries import BrokenEntry
from stages.sources.jsonl import parse_object

JSON_KEYS = ("caption", "text")
SYNTHETIC, SYNTHETIC_KEY = "syn.json", "syn_text"
"""Where DataCompDR keeps its synthetic captions: the member, and the name in it."""

TEXT_EXTENSIONS = ("txt", "json")
DOTTED_IMAGE = "image with dots in its name"
_MAX_IGNORED_NAMES = 40
_WORDS = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")

ReadMember = Callable[[Member], bytes]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a sample: the member of its payload, or a text of a `.json` member, or neither, with a status."""

    member: Member | None
    text: bytes | None = None
    text_number: int = 0
    status: str = "ok"
    reason: str = ""


@dataclass
class Scan:
    """What is learnt on the way: the digest of what decides the rows, the names in the first `.json`, what is ignored.

    Attributes:
        is_new: a sample gives other rows than in earlier versions.
    """

    digest: Any = None
    names: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    is_new: bool = False


class RowRule(Protocol):
    """What decides which members of a sample are its rows."""

    def is_wanted(self, name: str) -> bool:
        """Returns whether a member of that name may be a row."""
        ...

    def rows_of(self, sample: TarSample, read: ReadMember, scan: Scan) -> list[Row]:
        """Returns the rows of a sample, none where it has nothing, and counts the members that give none."""
        ...


@dataclass(frozen=True)
class ImageRule:
    """The first image of a sample is its row, or every one; one that is only a link is a row without a picture."""

    every: bool

    def is_wanted(self, name: str) -> bool:
        return self._is_image(split_name(name)[1])

    def rows_of(self, sample: TarSample, read: ReadMember, scan: Scan) -> list[Row]:
        every = [member for extension, member in sample.members if self._is_image(extension)]
        used = every if self.every else images_of(sample)[:1]
        for extension, member in sample.members:
            if member not in used:
                _count(scan.ignored, _ignored_image(extension, member))
        scan.is_new |= any(member.link for member in used)
        return [_linked(member, "image") if member.link else Row(member) for member in used]

    def _is_image(self, extension: str) -> bool:
        return (_last(extension) if self.every else extension) in IMAGE_EXTENSIONS


@dataclass(frozen=True)
class TextRule:
    """The first of `extensions` that a sample has gives its sentences; a `.json` without the key comes last.

    Attributes:
        extensions: as `txt`, `json` or `caption.txt`; with a star, as `*.txt`, all members that match give sentences.
        keys: of JSON, the first that is there.
        former: extensions, of which earlier versions took every member that ends in the first that any had.
    """

    extensions: tuple[str, ...]
    keys: tuple[str, ...]
    former: tuple[str, ...]

    def is_wanted(self, name: str) -> bool:
        extension = split_name(name)[1]
        return any(_matches(extension, wanted) for wanted in self.extensions)

    def rows_of(self, sample: TarSample, read: ReadMember, scan: Scan) -> list[Row]:
        rows = self._rows_of(sample, read, scan)
        used = {id(row.member) for row in rows}
        for extension, member in sample.members:
            if id(member) not in used:
                _count(scan.ignored, member.link or _extension_word(extension))
        scan.is_new |= bool(self.former) and used != {id(member) for member in self._formerly(sample)}
        return rows

    def _rows_of(self, sample: TarSample, read: ReadMember, scan: Scan) -> list[Row]:
        without_key: list[Row] = []
        for wanted in self.extensions:
            rows: list[Row] = []
            for extension, member in sample.members:
                if member.link or not _matches(extension, wanted):
                    continue
                if _last(extension) != "json":
                    rows.append(Row(member))
                elif (found := self.texts_of_json(member, read, scan)) is not None:
                    rows += found
                else:
                    without_key.append(Row(member, status="text-type", reason="null"))
            if rows:
                return rows
        return without_key[:1] or [_linked(member, "text") for _, member in sample.members if member.link][:1]

    def _formerly(self, sample: TarSample) -> list[Member]:
        members = [(extension, member) for extension, member in sample.members if not member.link]
        by_extension = ([m for extension, m in members if _last(extension) == wanted] for wanted in self.former)
        return next(filter(None, by_extension), [])

    def texts_of_json(self, member: Member, read: ReadMember, scan: Scan) -> list[Row] | None:
        """Returns the rows of a `.json` member; None where it has none of the keys."""
        if member.size > MAX_LINE_BYTES:
            return [Row(member, status="text-too-long", reason=f".json over {MAX_LINE_BYTES} bytes")]
        body = read(member)
        if scan.digest is not None:
            scan.digest.update(body)
        scan.is_new |= body.startswith(SIGNATURE)
        try:
            named = parse_object(body.removeprefix(SIGNATURE))
        except BrokenEntry as error:
            return [Row(member, status=f"text-{error.what}", reason=error.reason)]
        scan.names = scan.names or list(named)
        if not named.keys() & set(self.keys):
            return None
        value = next(named[key] for key in self.keys if key in named)
        if isinstance(value, list) and not value:
            return [Row(member, status="src-no-text", reason="empty list")]
        values = value if isinstance(value, list) else [value]
        return [_text_row(member, number, one) for number, one in enumerate(values, start=1)]


def image_rule(options: dict[str, str]) -> ImageRule:
    """Returns what `images` says; raises `UsageError`."""
    _require_known("images", options.get("images", "first"), ("all", "first"))
    return ImageRule(every=options.get("images") == "all")


def text_rule(options: dict[str, str]) -> TextRule:
    """Returns what `ext` and `json_key` say; raises `UsageError`."""
    extensions = tuple(options["ext"].lower().split(",")) if "ext" in options else TEXT_EXTENSIONS
    for extension in extensions:
        _require_known("ext", _last(extension), TEXT_EXTENSIONS)
    keys = (*JSON_KEYS, SYNTHETIC_KEY) if SYNTHETIC in extensions else JSON_KEYS
    former = extensions if extensions in (TEXT_EXTENSIONS, *((one,) for one in TEXT_EXTENSIONS)) else ()
    return TextRule(extensions, (options["json_key"],) if "json_key" in options else keys, former)


def images_of(sample: TarSample) -> list[Member]:
    """Returns the members that are images by their whole extension; the first is what the sample stands for.

    Links are among them only where there is nothing else.
    """
    images = [member for extension, member in sample.members if extension in IMAGE_EXTENSIONS]
    return [image for image in images if not image.link] or images


def dotted_texts(ignored: Counter[str]) -> list[str]:
    """Returns the extensions with a dot among what was ignored that may hold sentences, the commonest first."""
    return [word[1:] for word, _ in ignored.most_common() if word.count(".") > 1 and _last(word) in TEXT_EXTENSIONS]


def _matches(extension: str, wanted: str) -> bool:
    return fnmatchcase(f".{extension}", wanted) if "*" in wanted else extension == wanted


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]


def _require_known(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise unknown_name(f"value of option {option}", value, known)


def _ignored_image(extension: str, member: Member) -> str:
    if member.link:
        return member.link
    if extension in IMAGE_EXTENSIONS:
        return "second image"
    return DOTTED_IMAGE if _last(extension) in IMAGE_EXTENSIONS else _extension_word(extension)


def _extension_word(extension: str) -> str:
    # Dots in names make as many extensions as there are members.
    is_word = "." not in extension or _WORDS.fullmatch(extension)
    return f".{extension}" if is_word else f".{_last(extension)} with dots in its name"


def _count(ignored: Counter[str], word: str) -> None:
    ignored[word if word in ignored or len(ignored) < _MAX_IGNORED_NAMES else "others"] += 1


def _linked(member: Member, what: str) -> Row:
    return Row(member, status=f"src-no-{what}", reason=f"only a {member.link}")


def _text_row(member: Member, number: int, value: object) -> Row:
    if not isinstance(value, str):
        return Row(member, status="text-type", reason="null" if value is None else "not text")
    try:
        return Row(member, value.encode("utf-8"), number)
    except UnicodeEncodeError:
        return Row(member, status="text-encoding", reason="half a surrogate pair")
