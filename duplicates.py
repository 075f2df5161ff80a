"""Looking over many photos: which cannot be read, which are near-duplicates of each other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
from PIL import Image

from photos import PhotoError, read_photo

DUPLICATE_BITS = 8  # of 64; looked at on web photos: up to 6 all pairs were one photo saved twice, at 8 nearly all, at 10 half


def perceptual_hash(photo: np.ndarray) -> int:
    """64 bits that change little when a photo is resized or compressed again (the DCT hash of the imagehash library)."""
    return int(str(imagehash.phash(Image.fromarray(photo))), 16)


def look_over(paths: Sequence[str], progress: Callable[[Iterator], Iterator] = iter) -> tuple[np.ndarray, dict[int, str]]:
    """Read each photo once, small. Returns hashes uint64 (N,), and for those that cannot be read {index: why}."""
    def one(path: str) -> int | str:
        try:
            return perceptual_hash(read_photo(path, min_side=64))
        except PhotoError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(progress(pool.map(one, paths)))
    errors = {i: why for i, why in enumerate(found) if isinstance(why, str)}
    return np.array([0 if i in errors else h for i, h in enumerate(found)], np.uint64), errors


def near_duplicates(hashes: np.ndarray, bits: int = DUPLICATE_BITS) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) of indices whose hashes uint64 (N,) differ in at most `bits` bits; enough pairs to connect them all.

    Of bits + 1 bands of a hash, one at least must be equal then, so only photos that share a band are compared: the
    time grows with the photos, not with their pairs.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    yield from ((int(first[inverse[i]]), i) for i in range(len(hashes)) if first[inverse[i]] != i)
    edges = np.linspace(0, 64, bits + 2).astype(np.uint64)
    for low, high in itertools.pairwise(edges):
        band = (unique >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            if len(members) > 1:
                distance = np.bitwise_count(unique[members, None] ^ unique[members])
                yield from ((int(first[members[a]]), int(first[members[b]])) for a, b in np.argwhere(distance <= bits) if a < b)
