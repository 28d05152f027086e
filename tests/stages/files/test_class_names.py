"""Files of class names are read one entry a line, as people write them."""

from pathlib import Path

import pytest

from cache_schema.errors import UsageError
from stages.files.class_names import read_entries


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "classnames.txt"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("has_last_end", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_entry_is_a_line_in_order_and_may_be_empty_or_come_twice(
    end: bytes, has_last_end: bool, mark: bytes, path: Path
) -> None:
    lines = ["tench", "  great white shark\t", "", "crane", "fröhlich, 图", " \t", "crane"]
    path.write_bytes(mark + end.join(line.encode() for line in lines) + (end if has_last_end else b""))
    assert read_entries(path) == ["tench", "great white shark", "", "crane", "fröhlich, 图", "", "crane"]


def test_only_the_last_line_end_starts_no_entry(path: Path) -> None:
    path.write_bytes(b"\ncat\n\n")
    assert read_entries(path) == ["", "cat", ""]


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\t\r\n"])
def test_a_file_without_an_entry_is_a_usage_error(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"{path} is empty: write one entry per line"):
        read_entries(path)


def test_what_is_not_utf_8_is_a_usage_error_that_names_the_byte(path: Path) -> None:
    path.write_bytes("cat\nfröhlich".encode("latin-1"))
    with pytest.raises(UsageError, match=rf"{path} is not UTF-8 \(byte 6\): convert it"):
        read_entries(path)
