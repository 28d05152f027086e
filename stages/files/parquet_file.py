"""Opens Parquet files so that only the thread that asks reads them."""

import pyarrow.parquet as pq

from stages.files.opened import SourceFile


def parquet_of(file: SourceFile) -> pq.ParquetFile:
    """Returns `file` as a Parquet file. No other thread reads it as long as the caller says `use_threads=False`.

    Raises:
        pa.ArrowException, OSError: as `pq.ParquetFile`.
    """
    # With `pre_buffer`, the default, a thread of Arrow reads the stream and may be the last to let go of it. Where the
    # interpreter ends meanwhile, as after a refusal, pyarrow 26.0.1 aborts the process (apache/arrow#34314).
    # A stream of its own, because whoever closes the one does not close the other.
    return pq.ParquetFile(file.stream(), pre_buffer=False)
