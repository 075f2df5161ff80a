import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import duplicates
from duplicates import _near, look_over, near_duplicates, perceptual_hash
from photos import read_photo


def test_look_over_names_what_it_cannot_read(drawn, tmp_path):
    good = min(drawn.rglob("*.jpg"))
    (tmp_path / "bad.jpg").write_bytes(b"x")
    hashes, errors = look_over([str(good), str(tmp_path / "bad.jpg")])
    assert list(errors) == [1]
    assert hashes[0] == perceptual_hash(read_photo(good, min_side=64))


def test_look_over_takes_few_at_a_time_and_keeps_their_order(monkeypatch):
    waiting = []
    monkeypatch.setattr(duplicates, "AHEAD", 3)
    monkeypatch.setattr(duplicates.ThreadPoolExecutor, "map", lambda pool, one, paths: waiting.append(len(paths)) or map(one, paths))
    monkeypatch.setattr(duplicates, "read_photo", lambda path, min_side: path)
    monkeypatch.setattr(duplicates, "perceptual_hash", int)
    assert look_over(["5", "3", "8", "1", "9", "2", "6"])[0].tolist() == [5, 3, 8, 1, 9, 2, 6]
    assert waiting == [3, 3, 1]


def test_a_photo_saved_again_smaller_is_a_near_duplicate_and_another_is_not(drawn, tmp_path):
    one, other = sorted(drawn.rglob("*.jpg"))[:2]
    Image.open(one).resize((200, 150)).save(tmp_path / "again.jpg", quality=60)
    hashes, _ = look_over([str(one), str(other), str(tmp_path / "again.jpg")])
    assert {frozenset(pair) for pair in near_duplicates(hashes)} == {frozenset((0, 2))}


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.data())
def test_near_duplicates_connect_the_same_photos_as_comparing_all(hashes, data):
    # some neighbours on purpose, at 0 to 10 bits
    for base in hashes[:5]:
        flips = data.draw(st.sets(st.integers(0, 63), max_size=10))
        hashes = hashes + [base ^ sum(1 << bit for bit in flips)]

    def groups(pairs):
        parent = list(range(len(hashes)))
        for i, j in pairs:
            old, new = parent[i], parent[j]
            parent = [new if p == old else p for p in parent]
        return [[parent[i] == parent[j] for j in range(len(hashes))] for i in range(len(hashes))]

    everything = [(i, j) for i in range(len(hashes)) for j in range(i) if (hashes[i] ^ hashes[j]).bit_count() <= 8]
    assert groups(near_duplicates(np.array(hashes, np.uint64), 8)) == groups(everything)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_those_that_agree_are_compared_across_the_border_of_a_chunk(rng, chunk):
    hashes = np.unique(rng.integers(0, 2**64, 60, np.uint64) & np.uint64(0x0F0F) | np.uint64(1 << 40))
    mask = np.uint64(0x0F00)
    found = {frozenset(pair) for pair in _near(hashes, mask, 1, chunk).tolist()}
    pairs = [(i, j) for i in range(len(hashes)) for j in range(i) if int(hashes[i] ^ hashes[j]).bit_count() <= 1]
    agree = {frozenset((i, j)) for i, j in pairs if hashes[i] & mask == hashes[j] & mask}
    assert len(agree) > 10
    assert agree <= found <= set(map(frozenset, pairs))  # some that do not agree stand side by side too
