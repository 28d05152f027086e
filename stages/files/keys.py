"""Keys of samples as 8-byte hashes: equal ones are found in little memory."""

import hashlib

import numpy as np


def hash_of_key(key: str) -> int:
    """Returns the 8-byte BLAKE2b of a key as an integer, for finding duplicates in little memory."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def first_repeated(key_hashes: np.ndarray) -> tuple[int, int] | None:
    """Returns the indices (first, second) of the two earliest equal hashes of one value, or None."""
    order = np.argsort(key_hashes, kind="stable")
    ordered = key_hashes[order]
    places = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(places):
        return None
    at = places[np.argmin(order[places + 1])]
    return int(order[at]), int(order[at + 1])
