"""A strip of LZW is unpacked as far as its rows go, or, where that would take long, asked for its end mark."""

import numpy as np
import pytest

from stages.images.strips import ends_early
from tests.corpora.pictures import encoded, noise
from tests.stages.images.test_tiff import STRIP_BYTES, STRIP_OFFSETS, numbers_of

LZW, ROWS_PER_STRIP = 5, 278


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_lzw_of_libtiff_is_whole_and_cut_anywhere_it_is_not(mode: str, is_long: bool) -> None:
    num_cuts = num_found = 0
    for rows in range(1, 40):
        image = noise(113, rows, rows).convert(mode)
        data = encoded(image, "TIFF", compression="tiff_lzw", tiffinfo={ROWS_PER_STRIP: rows})
        (start,), (count,) = numbers_of(data, STRIP_OFFSETS), numbers_of(data, STRIP_BYTES)
        num_bytes = np.asarray(image).nbytes if mode != "1" else -(-113 // 8) * rows
        piece = data[start : start + count]
        assert not ends_early(LZW, piece, num_bytes, is_long=is_long)
        for cut in range(3, count - 4, 1 + count // 9):
            num_cuts += 1
            num_found += ends_early(LZW, piece[:cut], num_bytes, is_long=is_long)
    assert num_cuts > 200 and num_found >= (0.97 * num_cuts if is_long else num_cuts)
