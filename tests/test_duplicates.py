import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from duplicates import look_over, near_duplicates, perceptual_hash
from photos import read_photo


def test_look_over_names_what_it_cannot_read(drawn, tmp_path):
    good = min(drawn.rglob("*.jpg"))
    (tmp_path / "bad.jpg").write_bytes(b"x")
    hashes, errors = look_over([str(good), str(tmp_path / "bad.jpg")])
    assert list(errors) == [1]
    assert hashes[0] == perceptual_hash(read_photo(good, min_side=64))


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
