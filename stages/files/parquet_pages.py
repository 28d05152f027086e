"""Single pages of a Parquet column, decoded without those before them.

pyarrow 26.0.1 reads a row group from its start. So the one page that holds a row (with its dictionary, where it has
one) is put into a small Parquet file of its own, in memory, and pyarrow decodes that: bytes as they stand in the file,
checked and decompressed as ever. Which rows a page holds is read from the headers of the pages, which every file has.

**Source:** the Parquet format (parquet.thrift): PageHeader, FileMetaData; Thrift's compact protocol.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cache_schema.errors import DamagedError
from stages.files import compact_thrift
from stages.files.compact_thrift import Struct
from stages.files.opened import SourceFile, read_range
from stages.files.parquet_file import Chunk, ParquetTable, damage_in_words

_MAGIC = b"PAR1"
_BYTE_ARRAY, _REQUIRED, _OPTIONAL = 6, 0, 1
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_ENCODINGS = (0, 3, 8)
# Uncompressed, Snappy, gzip, Brotli, Zstandard and LZ4 as such; LZO and LZ4 as Hadoop frames it are left out.
_CODECS = {0, 1, 2, 4, 6, 7}
_HEADER_BYTES, _MAX_HEADER_BYTES = 1 << 12, 1 << 24
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Page:
    """A page with its header: where it is, and the first of its rows, counted in its row group."""

    offset: int
    size: int
    first_row: int
    num_rows: int


class RowsAtRandom:
    """Rows of a column of bytes or text, or of some such fields of a column of structs, by their numbers.

    Args:
        table: whose rows are read; it need not stay open.
        column: name of the column.
        fields: of a struct, those that are wanted; none where the column is no struct.
    """

    def __init__(self, table: ParquetTable, column: str, fields: Sequence[str]) -> None:
        self.size_bytes = table.size_bytes
        self.num_rows = table.num_rows
        self._uri = table.uri
        self._groups = table.groups()
        self._fields = fields
        paths = table.leaves()
        wanted = [f"{column}.{field}" for field in fields] or [column]
        self._leaves = [leaf for leaf, path in enumerate(paths) if path in wanted]
        self._leaves.sort(key=lambda leaf: wanted.index(paths[leaf]))
        columns = [table.metadata.schema.column(leaf) for leaf in self._leaves]
        self._depths = [column.max_definition_level for column in columns]
        self._chunks = [table.chunks_of(leaf) for leaf in self._leaves]
        # Every row must be one value of bytes: old writers repeat the column itself where it is a list.
        are_bytes = all(column.physical_type == "BYTE_ARRAY" and not column.max_repetition_level for column in columns)
        codecs = {chunk.codec for chunks in self._chunks for chunk in chunks}
        self.is_possible = len(self._leaves) == len(wanted) and are_bytes and codecs <= _CODECS
        self._pages: dict[tuple[int, int], _ColumnPages] = {}

    def around(self, file: SourceFile, row: int) -> tuple[int, pa.Array]:
        """Returns the number of the first of some neighbouring rows and their values, `row` among them.

        Of a row group only headers of pages are read, and one page of every field (with its dictionary) decoded; the
        values are the rows that these have in common, and no more than 64 MiB of one.

        Args:
            file: the file of the table, open.
            row: its number, counted in the file.

        Raises:
            DamagedError: a page cannot be decoded, or has another checksum than it says.
        """
        group = bisect_right(self._groups, row, key=lambda rows: rows[0]) - 1
        first = self._groups[group][0]
        with damage_in_words(self._uri):
            places = range(len(self._leaves))
            runs = [self._pages_of(file, group, place).rows_around(file, row - first) for place in places]
        if not self._fields:
            return first + runs[0][0], runs[0][1]
        start, end = max(at for at, _ in runs), min(at + len(values) for at, values in runs)
        cut = [values.slice(start - at, end - start) for at, values in runs]
        return first + start, pa.StructArray.from_arrays(cut, list(self._fields))

    def _pages_of(self, file: SourceFile, group: int, place: int) -> "_ColumnPages":
        if (group, place) not in self._pages:
            chunk, depth = self._chunks[place][group], self._depths[place]
            self._pages[group, place] = _ColumnPages(self._uri, file, chunk, depth)
        return self._pages[group, place]


class _ColumnPages:
    """The pages of one column of bytes in one row group. Only their headers are read to make one.

    Args:
        uri: of the file, for messages.
        file: the file, open.
        chunk: what the footer says of it.
        depth: its definition levels.

    Raises:
        DamagedError: the headers are damaged.
    """

    def __init__(self, uri: str, file: SourceFile, chunk: Chunk, depth: int) -> None:
        self._uri = uri
        self._depth = depth
        self._codec = chunk.codec
        self._dictionary: _Page | None = None
        self._pages: list[_Page] = []
        position, row = chunk.offset, 0
        while row < chunk.num_values:
            kind, page = self._page_at(file, position, row)
            if kind == _DICTIONARY:
                self._dictionary = page
            elif kind in (_DATA, _DATA_V2):
                self._pages.append(page)
                row += page.num_rows
            position += page.size
        if not self._pages:
            raise self._damaged(position)

    def rows_around(self, file: SourceFile, row: int) -> tuple[int, pa.LargeBinaryArray]:
        """Returns the first of some neighbouring rows of one page, counted in the row group, and their values.

        Raises:
            DamagedError: the page has another checksum than it says, or lacks the row.
            pa.ArrowException, OSError: the page cannot be decoded.
        """
        page = self._pages[bisect_right(self._pages, row, key=lambda page: page.first_row) - 1]
        alone = self._alone(file, page)
        about = alone.metadata.row_group(0)
        size = max(1, _BATCH_BYTES * page.num_rows // max(1, about.total_byte_size))
        first = page.first_row
        for batch in alone.iter_batches(size, use_threads=False):
            if row < first + batch.num_rows:
                values = batch.column(0)
                while pa.types.is_struct(values.type):
                    (values,) = values.flatten()
                return first, values
            first += batch.num_rows
        raise DamagedError(f"{self._uri}: the page at offset {page.offset:,} lacks rows: it is damaged; fetch it again")

    def _page_at(self, file: SourceFile, position: int, row: int) -> tuple[int, _Page]:
        header_bytes = _HEADER_BYTES
        while True:
            data = file.read_at(position, header_bytes)
            try:
                header, end = compact_thrift.read_struct(data, 0)
                kind = header[1]
                about = header.get(5) or header.get(8) or {1: 0}
                page = _Page(position, end + header[3], row, 0 if kind == _DICTIONARY else about[1])
            except IndexError:
                if len(data) < header_bytes or header_bytes >= _MAX_HEADER_BYTES:
                    raise self._damaged(position) from None
                header_bytes *= 16
                continue
            except (KeyError, TypeError, ValueError):
                raise self._damaged(position) from None
            if header[3] < 0 or page.num_rows < 0 or position + page.size > file.size_bytes:
                raise self._damaged(position)
            return kind, page

    def _damaged(self, position: int) -> DamagedError:
        return DamagedError(f"{self._uri}: no valid page at offset {position:,}: it is damaged; fetch it again")

    def _alone(self, file: SourceFile, page: _Page) -> pq.ParquetFile:
        """Returns a Parquet file of one column with that page alone."""
        pages = [self._dictionary, page] if self._dictionary else [page]
        body = b"".join(read_range(self._uri, file, one.offset, one.size) for one in pages)
        footer = compact_thrift.write_struct(_footer(self._depth, self._codec, [one.size for one in pages], page))
        whole = b"".join((_MAGIC, body, footer, len(footer).to_bytes(4, "little"), _MAGIC))
        return pq.ParquetFile(
            pa.BufferReader(whole), pre_buffer=False, binary_type=pa.large_binary(), page_checksum_verification=True
        )


def _footer(depth: int, codec: int, sizes: Sequence[int], page: _Page) -> Struct:
    """Returns the FileMetaData of a file with one column, at `depth` definition levels, and pages of those sizes."""
    names = [f"level{level}" for level in range(depth - 1)] + ["value"]
    groups: list[Struct] = [{3: _OPTIONAL, 4: name, 5: 1} for name in names[:-1]]
    leaf: Struct = {1: _BYTE_ARRAY, 3: _OPTIONAL if depth else _REQUIRED, 4: names[-1]}
    total = compact_thrift.Long(sum(sizes))
    rows = compact_thrift.Long(page.num_rows)
    chunk: Struct = {
        1: _BYTE_ARRAY,
        2: list(_ENCODINGS),
        3: names,
        4: codec,
        5: rows,
        6: total,
        7: total,
        9: compact_thrift.Long(len(_MAGIC) + sum(sizes[:-1])),
    }
    if len(sizes) > 1:
        chunk[11] = compact_thrift.Long(len(_MAGIC))
    group: Struct = {1: [{2: compact_thrift.Long(0), 3: chunk}], 2: total, 3: rows}
    return {1: 1, 2: [{4: "schema", 5: 1}, *groups, leaf], 3: rows, 4: [group]}
