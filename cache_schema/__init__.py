"""The feature cache on disk, format 1: the contract between the teacher that wrote it and everyone who reads it.

    CACHE/
      cache.json                           format, part_rows, tool versions
      lock.json                            while one extract runs
      image/                               and text/ alike
        plan.json                          sources and the ordered parts cut from them
        samples/00000.parquet              row, key, source, digest, status, reason, width, height | text
        pixels/00000.arrow                 small JPEGs of the images, with 00000.json; made as pixels.json says
        features.zarr/<array>/             Zarr v3, (rows, dim) float16, NaN where a sample is bad, one shard per part
        arrays/<array>/recipe.json         what made the features
        arrays/<array>/probes.npz          16 inputs and their features
        arrays/<array>/records/00000.json  part 0 is committed; with 00000.rows, a 16-byte hash of every row,
                                           and 00000.views, a 4-byte check of every crop
        indexes/<array>.<name>.faiss       with <array>.<name>.json beside it
      neighbours/<name>/                   recipe.json, records/, neighbours.zarr/{ids,scores}
      selections/<name>.parquet            a named list of rows, with <name>.json beside it

The features are ordinary Zarr v3 and the sample tables ordinary Parquet: any reader of those formats can use a cache.
What this package adds is that a row is there whole, accounted for and provably the right one, or an error says why not.

A row is `part * part_rows + offset` and never changes. Every planned row has exactly one of a feature, or a status
with a reason. A part becomes real when its record is published, last, after everything the record names by SHA-256.

This package needs numpy, pyarrow and google-crc32c, and nothing of the rest of the project; zarr is for other readers.
"""
