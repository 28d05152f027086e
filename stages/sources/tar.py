"""Webdataset tars: members that share the path up to the first dot of their name are one sample.

A sample may give several rows: the first has its key, further ones the key with `#1`, `#2` … behind it. All places of
headers and payloads are multiples of 512, so a place also says which row (`read`) or which text of a `.json` member
(`read_one`) is meant: that number is added to it.
"""

import hashlib
from array import array
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

import numpy as np

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError, unknown_name
from cache_schema.layout import Modality
from stages.files.keys import first_repeated, hash_of_key
from stages.files.lines import MAX_LINE_BYTES, SIGNATURE
from stages.files.opened import SourceFile, planned_file, read_range
from stages.files.tar_members import BLOCK_BYTES, Member, TarSample, member_size, read_members, samples_in
from stages.images.formats import is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, RawSample, ScannedSource
from stages.sources.tar_rows import DOTTED_IMAGE, Row, RowRule, Scan, TextRule, dotted_texts, image_rule, text_rule

_MAX_ROWS = BLOCK_BYTES - 1
_NEW = 1 << 52
"""Added to every place in a tar of which earlier versions made other rows, so that their plans are not read on."""

_NAMES_SHOWN = 20


class TarSource:
    """A webdataset tar of images, of sentences or of both.

    Option for images: `images=all`; for sentences: `ext` and `json_key`; for both: `zeros=ok`.

    The image of a sample is its first member with an image extension; with `images=all` every member whose last
    extension is one is a row (`x.jpg`, `x.seg.png`). The sentence of a sample is its `.txt`, as a whole but for a byte
    order mark before it and a line feed behind it; where it has none, its `.json` has one or a list of them under
    `json_key` (default `caption`, else `text`). `ext` names other members, the first that is there counts:
    `ext=caption.txt,txt`, and `ext=*.txt` takes every member that ends so (`x.0.txt`, `x.1.txt`); `ext=syn.json` reads
    the captions of DataCompDR, which stand under `syn_text`. Other members are counted and ignored. A sample with
    nothing, or whose image or sentence is only a link, keeps its row as `src-no-image` or `src-no-text`. Keys are the
    paths up to the first dot of the file name. `zeros=ok` lets more zero bytes end the file than fill its last record.
    """

    kind: ClassVar[str] = "tar"
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "text")
    extensions: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
    option_names: ClassVar[tuple[str, ...]] = ("images", "ext", "json_key", "zeros")

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        fitting = ("images", "zeros") if modality == "image" else ("ext", "json_key", "zeros")
        for name in options:
            if name not in fitting:
                raise UsageError(
                    f"option {name} of {uri} is not for {modality}s (they have {', '.join(fitting)}): drop it"
                )
        if options.get("zeros", "ok") != "ok":
            raise unknown_name("value of option zeros", options["zeros"], ("ok",))
        self._rule: RowRule = image_rule(options) if modality == "image" else text_rule(options)

    def scan(self) -> ScannedSource:
        """Reads every header, seeking over the payloads; of sentences also the `.json` members that hold some.

        A tar without members is an empty shard, a scan of no samples.

        Raises:
            DamagedError: the file is empty, cut, compressed or not a tar; the message names the offset.
            RefusedError: a key comes back after another one (interleaved or used twice), both places are named; a
                sample has more than 511 rows; or no `.json` has the key.
            UsageError: no sample has an image, or a sentence.
        """
        offsets, hashes = array("q"), array("Q")
        scan = Scan(self._new_digest())
        num_usable = num_with_member = 0
        zeros_ok = "zeros" in self.options
        with planned_file(self.uri) as file:
            for group in self._samples(file, 0, scan, zeros_ok=zeros_ok):
                for number, row in enumerate(self._rows(file, group, scan)):
                    offsets.append(group.header_offset + number)
                    hashes.append(hash_of_key(_key_of(group, number)))
                    num_with_member += row.member is not None
                    num_usable += row.status == "ok"
        key_hashes = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, np.uint64)
        places = np.frombuffer(offsets, dtype=np.int64) if offsets else np.zeros(0, np.int64)
        if num_with_member == 0 and (len(places) or scan.ignored):
            self._refuse_nothing(scan)
        if num_usable == 0 and scan.names:
            self._refuse_missing_key(scan)
        if scan.is_new:
            scan.digest.update(b"plain members, links\n")
            places = places + _NEW
        self._refuse_repeated_key(key_hashes, places)
        return ScannedSource(scan.digest.hexdigest(), len(places), places, key_hashes, dict(scan.ignored))

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields rows from the header at `offset_bytes` on.

        Raises:
            DamagedError: the tar ends early.
            MismatchError: it was planned by an earlier version that made other rows of it.
        """
        if num_samples == 0:
            return
        num_read = 0
        scan = Scan()
        is_new, place = divmod(offset_bytes, _NEW)
        first_row = place % BLOCK_BYTES
        with planned_file(self.uri) as file:
            for group in self._samples(file, place - first_row, scan, zeros_ok=True):
                rows = self._rows(file, group, scan)
                if scan.is_new and not is_new:
                    raise MismatchError(
                        f"{self.uri} was planned by an earlier version, which took other members of sample "
                        f"{group.key!r}, or none for a link: extract it into a new cache"
                    )
                for number, row in enumerate(rows[first_row:], start=first_row):
                    yield self._sample(file, group, number, row)
                    num_read += 1
                    if num_read == num_samples:
                        return
                first_row = 0
        raise DamagedError(
            f"{self.uri} holds {first_sample + num_read:,} samples, the plan has more: it changed; restore it"
        )

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns `size_bytes` bytes at the payload offset; raises `RefusedError` when they are not there any more."""
        text_number = offset_bytes % BLOCK_BYTES
        start = offset_bytes - text_number
        with planned_file(self.uri) as file:
            if not text_number:
                payload = read_range(self.uri, file, offset_bytes, size_bytes)
                if self.modality == "image" or not payload.startswith(SIGNATURE):
                    return payload
            member = Member(key, start, start, member_size(self.uri, file, start))
            body = read_range(self.uri, file, start, member.size)
        if not text_number:
            # Earlier versions took the byte order mark for a letter.
            texts = [_without_line_end(body), _without_line_end(body).removeprefix(SIGNATURE)]
            return next((text for text in texts if len(text) == size_bytes), payload)
        assert isinstance(self._rule, TextRule), "only sentences have a number"
        rows = self._rule.texts_of_json(member, lambda _: body, Scan()) or []
        text = rows[text_number - 1].text if text_number <= len(rows) else None
        if text is None or len(text) != size_bytes:
            raise MismatchError(
                f"text {text_number} of the .json at offset {start:,} of {self.uri} is not the planned one: "
                "it changed; restore it"
            )
        return text

    def _new_digest(self) -> Any:
        digest = hashlib.sha256()
        if isinstance(self._rule, TextRule):
            words = f"texts {self._rule.extensions} {self._rule.keys}\n"
            digest.update(words.encode("utf-8", "surrogatepass"))
        elif self.options.get("images") == "all":
            digest.update(b"all images\n")
        return digest

    def _samples(self, file: SourceFile, position: int, scan: Scan, *, zeros_ok: bool) -> Iterator[TarSample]:
        members = read_members(self.uri, file, position, scan.ignored, scan.digest, with_links=True, zeros_ok=zeros_ok)
        return samples_in(self._without_other_links(members, scan), scan.ignored)

    def _without_other_links(self, members: Iterator[Member], scan: Scan) -> Iterator[Member]:
        for member in members:
            if member.link and not self._rule.is_wanted(member.name):
                scan.ignored[member.link] += 1
            else:
                yield member

    def _rows(self, file: SourceFile, group: TarSample, scan: Scan) -> list[Row]:
        """Returns the rows of one sample, at least one."""
        rows = self._rule.rows_of(group, lambda member: read_range(self.uri, file, member.offset, member.size), scan)
        if len(rows) > _MAX_ROWS:
            raise RefusedError(
                f"{self.uri}: sample {group.key!r} has {len(rows):,} {self.modality}s, over {_MAX_ROWS}: split it"
            )
        return rows or [Row(None, status=f"src-no-{self.modality}", reason=f"no {self.modality} member")]

    def _refuse_nothing(self, scan: Scan) -> NoReturn:
        found = ", ".join(sorted(scan.ignored)[:_NAMES_SHOWN])
        extensions = ("jpg",) if not isinstance(self._rule, TextRule) else self._rule.extensions
        example = " or ".join(f"KEY.{extension.removeprefix('*.')}" for extension in extensions)
        raise UsageError(
            f"no {self.modality}s in {self.uri} (found {found}): a sample needs a member such as {example}"
            f"{self._hint(scan)}"
        )

    def _refuse_missing_key(self, scan: Scan) -> NoReturn:
        assert isinstance(self._rule, TextRule), "only sentences have a key"
        raise RefusedError(
            f"{self.uri}: no .json has text under {' or '.join(map(repr, self._rule.keys))} (the first has "
            f"{', '.join(scan.names[:_NAMES_SHOWN])}): choose one with ?json_key=NAME{self._hint(scan)}"
        )

    def _hint(self, scan: Scan) -> str:
        if self.modality == "image":
            return " (?images=all takes those with dots in their names too)" if DOTTED_IMAGE in scan.ignored else ""
        dotted = dotted_texts(scan.ignored)[:_NAMES_SHOWN]
        return f", or another member with ?ext=NAME (found {', '.join(dotted)})" if dotted else ""

    def _sample(self, file: SourceFile, group: TarSample, number: int, row: Row) -> RawSample:
        key, member = _key_of(group, number), row.member
        if member is None:
            return RawSample(key, None, group.header_offset, 0, row.status, row.reason)
        if row.text is not None:
            return RawSample(key, row.text, member.offset + row.text_number, len(row.text))
        if row.status != "ok":
            return RawSample(key, None, member.offset, member.size, row.status, row.reason)
        is_image = self.modality == "image"
        limit = MAX_PAYLOAD_BYTES if is_image else MAX_LINE_BYTES
        if member.size > limit:
            status = "img-too-many-bytes" if is_image else "text-too-long"
            return RawSample(key, None, member.offset, member.size, status, f"over {limit} bytes")
        payload = read_range(self.uri, file, member.offset, member.size)
        if not is_image:
            text = _without_line_end(payload).removeprefix(SIGNATURE)
            if text.endswith(b"\0"):
                return RawSample(key, None, member.offset, member.size, "text-encoding", "ends in zero bytes")
            return RawSample(key, text, member.offset, len(text))
        note = "misnamed" if is_misnamed(member.name, payload) else ""
        return RawSample(key, payload, member.offset, member.size, "ok", note)

    def _refuse_repeated_key(self, key_hashes: np.ndarray, offsets: np.ndarray) -> None:
        repeated = first_repeated(key_hashes)
        if repeated is None:
            return
        key = next(iter(self.read(repeated[1], 1, int(offsets[repeated[1]])))).key
        first_offset, second_offset = (int(offsets[at]) % _NEW // BLOCK_BYTES * BLOCK_BYTES for at in repeated)
        raise RefusedError(
            f"key {key!r} comes twice in {self.uri}, at offset {first_offset:,} and again at {second_offset:,}: "
            "the members of a sample must follow one another, and a key may be used once; write the tar again"
        )


def _key_of(group: TarSample, number: int) -> str:
    return f"{group.key}#{number}" if number else group.key


def _without_line_end(text: bytes) -> bytes:
    return text.removesuffix(b"\n").removesuffix(b"\r")
