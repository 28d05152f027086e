"""What a source reads: all of its samples, each of them also read by itself."""

from stages.sources import RawSample, Source


def samples_of(source: Source) -> list[RawSample]:
    """Returns all samples of `source`; each is the same when it alone is read, by its number and by its key."""
    scan = source.scan()
    samples = list(source.read(0, scan.num_samples, scan.offset_bytes(0)))
    for number, sample in enumerate(samples):
        assert list(source.read(number, 1, scan.offset_bytes(number))) == [sample]
        if sample.payload is not None:
            assert source.read_one(sample.key, sample.offset_bytes, sample.size_bytes) == sample.payload
    return samples


def rows_of(source: Source) -> list[tuple[str, bytes | None, str]]:
    """Returns (key, payload, status) of every sample."""
    return [(sample.key, sample.payload, sample.status) for sample in samples_of(source)]


def outcomes_of(source: Source) -> list[tuple[str, str, str]]:
    """Returns (key, status, reason) of every sample."""
    return [(sample.key, sample.status, sample.reason) for sample in samples_of(source)]
