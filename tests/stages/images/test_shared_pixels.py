"""Memory for pixels is given out again when nobody keeps them, and not before."""

import gc

import numpy as np

from stages.images.shared_pixels import MappedSlabs, SharedPixels


def test_a_slab_is_used_again_once_nobody_keeps_its_pixels_or_a_view_of_them() -> None:
    memory = SharedPixels((6, 8, 3))
    first = memory.lease(100)
    place, view = first.offset_bytes, first.pixels[3:5].reshape(2, -1)
    view[:] = 7
    del first
    gc.collect()
    other = memory.lease(100)
    other.pixels[:] = 1
    assert other.offset_bytes != place and (view == 7).all()
    del view
    gc.collect()
    assert memory.lease(90).offset_bytes == place, "it holds fewer pictures, too"
    del other
    assert memory.lease(300).size_bytes >= 300 * 6 * 8 * 3, "and more need another"
    memory.close()


def test_whoever_maps_the_file_sees_the_same_pixels() -> None:
    memory = SharedPixels((2, 2, 3))
    slabs = [memory.lease(rows) for rows in (3, 5000)]
    theirs = MappedSlabs(memory.descriptor, (2, 2, 3))
    for number, slab in enumerate(slabs):
        pixels = theirs.slab(slab.offset_bytes, slab.size_bytes)
        pixels[len(slab.pixels) - 1, 1, 1, 2] = 5 + number
    assert [slab.pixels[-1, 1, 1, 2] for slab in slabs] == [5, 6]
    memory.close()
    assert np.array_equal(slabs[0].pixels[-1, 1], [[0, 0, 0], [0, 0, 5]]), "pixels outlive the file"
