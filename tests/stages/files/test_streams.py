"""A stream over something that is read at places reads the same bytes as a file does."""

import io
import random

from stages.files.streams import stream_of

CONTENT = bytes(range(256)) * 40


def test_a_stream_reads_seeks_and_ends_as_a_file_does() -> None:
    random.seed(0)
    stream = stream_of(lambda at, size: CONTENT[at : at + size], len(CONTENT), 30)
    expected = io.BytesIO(CONTENT)
    expected.seek(30)
    for _ in range(200):
        size, place = random.randrange(3000), random.randrange(-200, 200)
        assert stream.read(size) == expected.read(size) and stream.tell() == expected.tell()
        whence = random.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
        place = max(place, 0) if whence == io.SEEK_SET or expected.tell() < 200 else place
        assert stream.seek(place, whence) == expected.seek(place, whence)
