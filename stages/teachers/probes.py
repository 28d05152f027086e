"""Probes: 16 fixed pictures and 16 fixed sentences that tell whether a teacher is still the one that made an array.

Whoever computes features for an array first reproduces its probes. Digests of the prepared pixels and of the tokens
must be equal exactly; features must be as near as the arithmetic of both sides lets the right teacher be, which
`stages.teachers.arithmetic` knows. That catches wrong weights, a wrong resize, a drifting library and a sick device,
which no file hash can. Features must also be the same in a batch of another size and order, for a run has other batches
than the probes, and probes must differ, for a teacher to whom all inputs are one is reproduced by any other such.
"""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache_schema.errors import DamagedError, MismatchError, RefusedError
from cache_schema.features import unit_rows
from cache_schema.json_file import canonical_json
from cache_schema.layout import Modality
from stages.images.decode import set_pillow
from stages.images.preprocess import prepare_pixels
from stages.teachers import Teacher
from stages.teachers.arithmetic import Arithmetic, max_distance
from stages.teachers.batches import padded_pixels, padded_texts
from stages.teachers.probe_inputs import NUM_PROBES, PROBE_TEXTS, probe_images

_DIGEST_BYTES = 16
_MOST_IN_BATCH = 11
"""Of the probes, in `check_in_batch`: not all 16, and not the last, to whose long sentence others may be padded."""
_LEAST_APART = 1e-3
"""Between unit features of two inputs: what is nearer is not told apart once it is rounded to float16."""

Probes = dict[str, NDArray[np.generic]]


def compute_probes(teacher: Teacher, modality: Modality, *, arithmetic: Arithmetic | None = None) -> Probes:
    """Returns what `teacher` makes of the probes of one modality, in this `arithmetic`.

    Returns:
        "digests", uint8 of shape (16, 16): BLAKE2b of the prepared pixels and the normalisation, or of the tokens (of
        the sentence where a teacher does not show its tokens); "features", float32 of shape (16, dim), unit norm;
        where it is given, "arithmetic", its precision and numerics.

    Raises:
        RefusedError: a probe has no finite feature.
    """
    if modality == "image":
        prepared = _prepared(range(NUM_PROBES), teacher)
        how = canonical_json(teacher.preprocess.to_json())
        digests = [_digest(how + pixels.tobytes()) for pixels in prepared]
        features = teacher.encode_images(padded_pixels(prepared, NUM_PROBES, teacher.preprocess))
    else:
        texts = list(PROBE_TEXTS)
        tokens = teacher.token_ids(texts)
        payloads = [text.encode() for text in texts] if tokens is None else [row.tobytes() for row in tokens]
        digests = [_digest(payload) for payload in payloads]
        features = teacher.encode_texts(texts)
    probes: Probes = {"digests": np.stack(digests), "features": _usable(features, range(NUM_PROBES), teacher, modality)}
    if arithmetic is not None:
        probes["arithmetic"] = np.array([arithmetic.precision, arithmetic.numerics])
    return probes


def require_distinct(probes: Probes, specification: str, modality: Modality) -> None:
    """Raises `RefusedError` when more than half of the probes have one feature: the teacher does not see its inputs."""
    exact = _unit(probes["features"])
    apart = np.linalg.norm(exact[:, None] - exact[None], axis=2)
    num_alike = int((apart < _LEAST_APART).sum(axis=1).max())
    if num_alike > NUM_PROBES // 2:
        raise RefusedError(
            f"{specification} gives {num_alike} of the {NUM_PROBES} different probe {modality}s one and the same "
            f"feature (less than {_LEAST_APART:g} apart): its weights or its preprocessing are at fault; mend them "
            "before anything is extracted"
        )


def check_probes(
    stored: Probes,
    teacher: Teacher,
    modality: Modality,
    *,
    where: object,
    arithmetic: Arithmetic | None = None,
) -> Probes:
    """Compares what `teacher` makes of the probes now with what is `stored` at `where`, and returns the former.

    Args:
        stored: as `probes_from_bytes` gives it.
        teacher: computes in this process.
        modality: the modality of the probes.
        where: an array's probes file, for messages.
        arithmetic: that of the teacher; when it or that of the stored probes is unknown, features may differ most.

    Raises:
        MismatchError: as `compare_probes`.
    """
    now = compute_probes(teacher, modality, arithmetic=arithmetic)
    compare_probes(stored, now, teacher.specification, modality, where=where)
    return now


def compare_probes(stored: Probes, now: Probes, specification: str, modality: Modality, *, where: object) -> None:
    """Compares what the teacher of that `specification` makes of the probes `now` with what is `stored` at `where`.

    Raises:
        MismatchError: a digest differs, or a feature is further away than rounding explains; names the probe and both
            values.
    """
    what = "pixels" if modality == "image" else "tokens"
    remedy = "use the teacher, versions and device that the array was begun with, or extract into a new cache"
    changed = np.flatnonzero((stored["digests"] != now["digests"]).any(axis=1))
    if len(changed):
        probe = changed[0]
        theirs, ours = (bytes(values["digests"][probe]).hex()[:12] for values in (stored, now))
        raise MismatchError(
            f"{specification} prepares probe {modality} {probe} ({len(changed)} of {NUM_PROBES}) otherwise "
            f"than {where}: its {what} have digest {ours}, stored is {theirs}: {remedy}"
        )
    if stored["features"].shape != now["features"].shape:
        raise MismatchError(
            f"{specification} gives features of width {now['features'].shape[1]}, {where} holds "
            f"{stored['features'].shape[1]}: {remedy}"
        )
    apart = np.linalg.norm(_unit(stored["features"]) - _unit(now["features"]), axis=1)
    theirs_arithmetic, arithmetic = _arithmetic_in(stored), _arithmetic_in(now)
    limit = max_distance(arithmetic, theirs_arithmetic)
    probe = int(np.argmax(apart))
    if not apart[probe] <= limit:
        in_both = " and ".join(_told(values) for values in (theirs_arithmetic, arithmetic))
        raise MismatchError(
            f"{specification} does not reproduce probe {modality} {probe} of {where}: cosine "
            f"{1 - apart[probe] ** 2 / 2:.6f}, distance {apart[probe]:.2g}, at most {limit:.2g} is possible for the "
            f"same teacher (then and now: {in_both}; {np.sum(apart > limit)} of {NUM_PROBES} probes differ): {remedy}"
        )


def check_in_batch(known: Probes, teacher: Teacher, modality: Modality, *, batch_size: int) -> None:
    """Asks `teacher` for some probes in another order and in one batch that is padded, as a run pads its last ones.

    The features must be those that it gave in this process before, whatever stands beside them in the batch.

    Args:
        known: what `compute_probes` gave, with the same teacher.
        teacher: computes in this process.
        modality: the modality of the probes.
        batch_size: rows of the batch.

    Raises:
        MismatchError: a feature is another one than rounding explains; names the probe and both ways out.
        RefusedError: it is not finite.
    """
    rows = range(min(_MOST_IN_BATCH, max(1, batch_size - 1)))[::-1]
    if modality == "image":
        features = teacher.encode_images(padded_pixels(_prepared(rows, teacher), batch_size, teacher.preprocess))
    else:
        features = teacher.encode_texts(padded_texts([PROBE_TEXTS[row] for row in rows], batch_size))
    now = _usable(features[: len(rows)], rows, teacher, modality)
    apart = np.linalg.norm(_unit(known["features"][list(rows)]) - _unit(now), axis=1)
    arithmetic = _arithmetic_in(known)
    limit = max_distance(arithmetic, arithmetic)
    place = int(np.argmax(apart))
    if not apart[place] <= limit:
        raise MismatchError(
            f"{teacher.specification} gives probe {modality} {rows[place]} another feature at place {place} of a batch "
            f"of {batch_size} with {batch_size - len(rows)} rows of padding than it gave in one of {NUM_PROBES}: "
            f"distance {apart[place]:.2g}, at most {limit:.2g} is rounding ({np.sum(apart > limit)} of {len(rows)} "
            "probes differ): let no feature depend on what else is in the batch (evaluation mode, attention masks, "
            "order of rows), or, where it did not at first, find what changes the teacher while it works"
        )


def _prepared(numbers: Sequence[int], teacher: Teacher) -> list[NDArray[np.uint8]]:
    set_pillow()
    pictures = probe_images()
    return [prepare_pixels(Image.fromarray(pictures[number]), teacher.preprocess) for number in numbers]


def _usable(
    features: NDArray[np.float32], numbers: Sequence[int], teacher: Teacher, modality: Modality
) -> NDArray[np.float32]:
    """Returns the features of the probes `numbers` with unit norm; raises `RefusedError` where one has none."""
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    spoilt = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(spoilt):
        raise RefusedError(
            f"{teacher.specification} gives no usable feature for probe {modality} {numbers[spoilt[0]]} "
            f"(norm {norms[spoilt[0]]}): its weights, precision or device are at fault; try float32, and another device"
        )
    return unit_rows(features)


def _unit(features: NDArray[np.generic]) -> NDArray[np.float64]:
    exact = features.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def _arithmetic_in(probes: Probes) -> Arithmetic | None:
    return Arithmetic(*map(str, probes["arithmetic"])) if "arithmetic" in probes else None


def _told(arithmetic: Arithmetic | None) -> str:
    return "unknown" if arithmetic is None else f"{arithmetic.precision} on {arithmetic.numerics}"


def probes_to_bytes(probes: Probes) -> bytes:
    """Returns the npz file, without pickled objects, that `probes_from_bytes` reads."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **probes)
    return buffer.getvalue()


_READ_ERRORS = (
    *(OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, LookupError, TypeError, OverflowError),
)
"""What `np.load` and `zipfile` raise for damaged files; a lone array in place of an npz is a `TypeError`."""


def probes_from_bytes(data: bytes, *, where: object) -> Probes:
    """Returns the probes in an npz file's bytes.

    Raises:
        DamagedError: the bytes are not whole, hold pickled objects, or have other shapes than probes.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            wanted = ("digests", "features", *({"arithmetic"} & set(file.files)))
            probes = {name: file[name] for name in wanted}
    except _READ_ERRORS as error:
        raise DamagedError(
            f"{where} is damaged ({error}): restore it from a copy, or extract into a new cache"
        ) from error
    digests, features = probes["digests"], probes["features"]
    if (
        (digests.shape, digests.dtype) != ((NUM_PROBES, _DIGEST_BYTES), np.uint8)
        or (features.shape[:1], features.ndim, features.dtype) != ((NUM_PROBES,), 2, np.float32)
        or not np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3)
        or ("arithmetic" in probes and (probes["arithmetic"].shape, probes["arithmetic"].dtype.kind) != ((2,), "U"))
    ):
        raise DamagedError(
            f"{where} is damaged (digests {digests.shape} {digests.dtype}, features {features.shape} {features.dtype}; "
            f"expected {(NUM_PROBES, _DIGEST_BYTES)} uint8, and ({NUM_PROBES}, dim) float32 of unit norm): restore it "
            "from a copy, or extract into a new cache"
        )
    return probes


def _digest(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest(), np.uint8)
