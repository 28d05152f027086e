"""Probes: 16 fixed pictures and 16 fixed sentences that tell whether a teacher is still the one that made an array.

Whoever computes features for an array first reproduces its probes. Digests of the prepared pixels and of the tokens
must be equal exactly; features must be as near as the arithmetic of both sides lets the right teacher be, which
`stages.teachers.arithmetic` knows. That catches wrong weights, a wrong resize, a drifting library and a sick device,
which no file hash can.
"""

import hashlib
import io
import struct
import zipfile
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache_schema.errors import DamagedError, MismatchError, RefusedError
from cache_schema.features import unit_rows
from cache_schema.json_file import canonical_json
from cache_schema.layout import Modality
from stages.images.preprocess import normalise, prepare_pixels
from stages.teachers import Teacher
from stages.teachers.arithmetic import Arithmetic, max_distance
from stages.teachers.probe_inputs import NUM_PROBES, PROBE_TEXTS, probe_images

_DIGEST_BYTES = 16


def compute_probes(
    teacher: Teacher, modality: Modality, *, arithmetic: Arithmetic | None = None
) -> dict[str, NDArray[np.generic]]:
    """Returns what `teacher` makes of the probes of one modality, in this `arithmetic`.

    Returns:
        "digests", uint8 of shape (16, 16): BLAKE2b of the prepared pixels and the normalisation, or of the tokens (of
        the sentence where a teacher does not show its tokens); "features", float32 of shape (16, dim), unit norm;
        where it is given, "arithmetic", its precision and numerics.

    Raises:
        RefusedError: a probe has no finite feature.
    """
    if modality == "image":
        prepared = [prepare_pixels(Image.fromarray(pixels), teacher.preprocess) for pixels in probe_images()]
        how = canonical_json(teacher.preprocess.to_json())
        digests = [_digest(how + pixels.tobytes()) for pixels in prepared]
        features = teacher.encode_images(normalise(np.stack(prepared), teacher.preprocess))
    else:
        texts = list(PROBE_TEXTS)
        tokens = teacher.token_ids(texts)
        payloads = [text.encode() for text in texts] if tokens is None else [row.tobytes() for row in tokens]
        digests = [_digest(payload) for payload in payloads]
        features = teacher.encode_texts(texts)
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    spoilt = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(spoilt):
        raise RefusedError(
            f"{teacher.specification} gives no usable feature for probe {modality} {spoilt[0]} "
            f"(norm {norms[spoilt[0]]}): its weights, precision or device are at fault; try float32, and another device"
        )
    probes = {"digests": np.stack(digests), "features": unit_rows(features)}
    if arithmetic is not None:
        probes["arithmetic"] = np.array([arithmetic.precision, arithmetic.numerics])
    return probes


def check_probes(
    stored: dict[str, NDArray[np.generic]],
    teacher: Teacher,
    modality: Modality,
    *,
    where: object,
    arithmetic: Arithmetic | None = None,
) -> None:
    """Compares what `teacher` makes of the probes with what is `stored` at `where`, an array's probes file.

    Args:
        stored: as `probes_from_bytes` gives it.
        teacher: computes in this process.
        modality: the modality of the probes.
        where: for messages.
        arithmetic: that of the teacher; when it or that of the stored probes is unknown, features may differ most.

    Raises:
        MismatchError: a digest differs, or a feature is further away than rounding explains; names the probe and both
            values.
    """
    now = compute_probes(teacher, modality)
    what = "pixels" if modality == "image" else "tokens"
    remedy = "use the teacher, versions and device that the array was begun with, or extract into a new cache"
    changed = np.flatnonzero((stored["digests"] != now["digests"]).any(axis=1))
    if len(changed):
        probe = changed[0]
        theirs, ours = (bytes(values["digests"][probe]).hex()[:12] for values in (stored, now))
        raise MismatchError(
            f"{teacher.specification} prepares probe {modality} {probe} ({len(changed)} of {NUM_PROBES}) otherwise "
            f"than {where}: its {what} have digest {ours}, stored is {theirs}: {remedy}"
        )
    if stored["features"].shape != now["features"].shape:
        raise MismatchError(
            f"{teacher.specification} gives features of width {now['features'].shape[1]}, {where} holds "
            f"{stored['features'].shape[1]}: {remedy}"
        )
    apart = np.linalg.norm(_unit(stored["features"]) - _unit(now["features"]), axis=1)
    theirs_arithmetic = _arithmetic_in(stored)
    limit = max_distance(arithmetic, theirs_arithmetic)
    probe = int(np.argmax(apart))
    if not apart[probe] <= limit:
        in_both = " and ".join(_told(values) for values in (theirs_arithmetic, arithmetic))
        raise MismatchError(
            f"{teacher.specification} does not reproduce probe {modality} {probe} of {where}: cosine "
            f"{1 - apart[probe] ** 2 / 2:.6f}, distance {apart[probe]:.2g}, at most {limit:.2g} is possible for the "
            f"same teacher (then and now: {in_both}; {np.sum(apart > limit)} of {NUM_PROBES} probes differ): {remedy}"
        )


def _unit(features: NDArray[np.generic]) -> NDArray[np.float64]:
    exact = features.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def _arithmetic_in(probes: dict[str, NDArray[np.generic]]) -> Arithmetic | None:
    return Arithmetic(*map(str, probes["arithmetic"])) if "arithmetic" in probes else None


def _told(arithmetic: Arithmetic | None) -> str:
    return "unknown" if arithmetic is None else f"{arithmetic.precision} on {arithmetic.numerics}"


def probes_to_bytes(probes: dict[str, NDArray[np.generic]]) -> bytes:
    """Returns the npz file, without pickled objects, that `probes_from_bytes` reads."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **probes)
    return buffer.getvalue()


_READ_ERRORS = (
    *(OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, LookupError, TypeError, OverflowError),
)
"""What `np.load` and `zipfile` raise for damaged files; a lone array in place of an npz is a `TypeError`."""


def probes_from_bytes(data: bytes, *, where: object) -> dict[str, NDArray[np.generic]]:
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
