"""Which images of a batch each process computes: whole groups of every student, as equal as these allow."""

from collections.abc import Sequence

from cache_schema.errors import UsageError
from stages.distill.gradient_cache import groups_of, nearly_equal


def shares_of(num_rows: int, group_sizes: Sequence[int | None], num_processes: int) -> list[slice]:
    """Returns the rows of every process, in the order of their ranks; all students have the same.

    Args:
        num_rows: images of a batch.
        group_sizes: of every student, how many of them share batch statistics or a random draw; None for one without
            either, whose rows may be parted anywhere.
        num_processes: how many have a share; none is empty.

    Raises:
        UsageError: there are more processes than groups that can be parted; says which sizes work.
    """
    starts = [{rows.start for rows in groups_of(num_rows, size)} for size in group_sizes if size is not None]
    common = sorted(set(range(num_rows)).intersection(*starts))
    if len(common) < num_processes:
        raise UsageError(_too_few(num_rows, len(common), len({size for size in group_sizes if size}), num_processes))
    ends = [*common, num_rows]
    return [slice(ends[some.start], ends[some.stop]) for some in nearly_equal(len(common), num_processes)]


def _too_few(num_rows: int, num_groups: int, num_sizes: int, num_processes: int) -> str:
    most = "1 process" if num_groups == 1 else f"at most {num_groups:,} processes"
    if num_sizes == 0:
        return (
            f"{num_processes:,} processes cannot share a batch of {num_rows:,} images: use {most}, or a larger "
            "--batch-size in another run"
        )
    differ = ", and the students have groups of different sizes" if num_sizes > 1 else ""
    largest = (num_rows - 1) // (num_processes - 1)
    other = (
        f"--norm-batch-size {largest:,}"
        if num_rows // 2 >= num_processes
        else f"a --batch-size of {2 * num_processes:,} or more with --norm-batch-size 2"
    )
    return (
        f"{num_processes:,} processes cannot share a batch of {num_rows:,} images that has {num_groups:,} groups of "
        f"images with common batch statistics or random draws{differ}: use {most}, or {other} for all students in "
        "another run"
    )
