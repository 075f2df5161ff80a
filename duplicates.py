"""Looking over many photos: which cannot be read, which are near-duplicates of each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import joblib
import numpy as np
from PIL import Image

from photos import PhotoError, read_photo

DUPLICATE_BITS = 8  # of 64; looked at on web photos: up to 6 all pairs were one photo saved twice, at 8 nearly all, at 10 half
AHEAD = 1000  # photos that wait for their turn at a time: each takes 2 kB meanwhile


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

    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        found = list(progress(itertools.chain.from_iterable(pool.map(one, paths[start:start + AHEAD])
                                                            for start in range(0, len(paths), AHEAD))))
    errors = {i: why for i, why in enumerate(found) if isinstance(why, str)}
    return np.array([0 if i in errors else h for i, h in enumerate(found)], np.uint64), errors


def near_duplicates(hashes: np.ndarray, bits: int = DUPLICATE_BITS) -> np.ndarray:
    """Pairs int (M, 2) of indices whose hashes uint64 (N,) differ in at most `bits` bits; enough pairs to connect them all.

    A hash is cut into bits + 5 bands. Where two differ in at most `bits` bits, five bands at least are the same in both, and three of
    these stand in one half of the hash. So only photos that share three bands of a half are compared, and no pair is missed: of a
    million, each with some thirty, not with all.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    same = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    edges = np.linspace(0, 64, bits + 6).astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    halves = bands[:len(bands) // 2], bands[len(bands) // 2:]
    masks = [np.uint64(sum(three)) for half in halves for three in itertools.combinations(half, 3)]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        near = pool.map(lambda mask: first[_near(unique, mask, bits)], masks)
        return np.concatenate([np.stack([first[inverse[same]], same], axis=1), *near])


def _near(hashes: np.ndarray, mask: np.uint64, bits: int, chunk: int = 1 << 17) -> np.ndarray:
    """Pairs (M, 2) of those that agree in the bits of the mask and differ in at most `bits` others. By chunks that fit a cache."""
    order = np.argsort(hashes & mask)
    own = hashes[order]
    ends = np.flatnonzero(np.append(np.diff(own & mask) != 0, True))
    agree = np.diff(ends, prepend=-1)  # how many there are of each value, which now stand side by side
    agree = np.repeat(agree, agree)
    pairs = [np.empty((0, 2), int)]
    for start in range(0, len(own), chunk):
        here = own[start:start + chunk]
        for apart in range(1, agree[start:start + chunk].max()):
            there = own[start + apart:start + apart + chunk]
            found = start + np.flatnonzero(np.bitwise_count(here[:len(there)] ^ there) <= bits)
            pairs.append(np.stack([order[found], order[found + apart]], axis=1))
    return np.concatenate(pairs)
