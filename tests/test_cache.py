import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import cache
from cache import PhotoCache
from dataset import Batches, DataError, Photos, make_loader
from photos import PhotoError, read_photo
from transforms import RandomViews


@pytest.fixture
def paths(drawn):
    return [str(path) for path in sorted(drawn.rglob("*.jpg"))[::6]]


def no_decoding(monkeypatch):
    def refuse(path, min_side):
        raise AssertionError(f"{path} was decoded again")
    monkeypatch.setattr(cache, "read_photo", refuse)


def batches_of(paths, read, workers: int) -> list:
    sampler = Batches(len(paths), batch=4, seed=0, epochs=3)
    loader = make_loader(Photos(paths, RandomViews(48, 1, 0.5), seed=0, min_side=72, read=read), sampler, workers)
    return [(images, index) for images, index, _ in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_byte_for_byte_with_the_cache(paths, tmp_path, workers):
    kept = PhotoCache(tmp_path / "decoded", 10**9)
    for (images, index), (same, same_index) in zip(batches_of(paths, read_photo, 0), batches_of(paths, kept.read, workers), strict=True):
        assert torch.equal(index, same_index)
        assert torch.equal(images, same)
    assert len(os.listdir(tmp_path / "decoded")) == len(paths)  # whole files only, one a photo


def test_what_workers_decoded_no_one_decodes_again(paths, tmp_path, monkeypatch):
    kept = PhotoCache(tmp_path / "decoded", 10**9)
    batches_of(paths, kept.read, workers=2)
    wanted = [read_photo(path, 72) for path in paths]
    no_decoding(monkeypatch)
    for path, photo in zip(paths, wanted, strict=True):
        np.testing.assert_array_equal(kept.read(path, 72), photo)
    again = PhotoCache(tmp_path / "decoded", 10**9)  # a killed run that goes on
    np.testing.assert_array_equal(again.read(paths[0], 72), wanted[0])
    assert again.used.value >= kept.used.value


def test_a_photo_that_two_workers_keep_at_once_is_kept_and_counted_once(paths, tmp_path, monkeypatch):
    kept, save = PhotoCache(tmp_path / "decoded", 10**9), np.save

    def save_while_another_does(out, photo):
        monkeypatch.setattr(np, "save", save)
        kept.read(paths[0], 72)
        save(out, photo)

    monkeypatch.setattr(np, "save", save_while_another_does)
    photo = kept.read(paths[0], 72)
    (file,) = (tmp_path / "decoded").iterdir()
    assert kept.used.value == file.stat().st_size == photo.nbytes + 128  # numpy's header


def test_a_cache_without_room_writes_nothing(paths, tmp_path, monkeypatch):
    kept = PhotoCache(tmp_path / "decoded", 100)
    monkeypatch.setattr(np, "save", lambda *_: pytest.fail("a photo is written that will not be kept"))
    np.testing.assert_array_equal(kept.read(paths[0], 72), read_photo(paths[0], 72))


def test_the_limit_holds_with_several_workers(paths, tmp_path):
    limit = sum(read_photo(path, 72).nbytes for path in paths) // 2
    kept = PhotoCache(tmp_path / "decoded", limit)
    batches_of(paths, kept.read, workers=2)
    sizes = [file.stat().st_size for file in (tmp_path / "decoded").iterdir()]
    assert limit / 2 < sum(sizes) == kept.used.value <= limit


def test_a_photo_that_changed_or_vanished_is_not_answered_from_the_past(paths, tmp_path):
    kept = PhotoCache(tmp_path / "decoded", 10**9)
    photo = tmp_path / "a.png"
    for value in (10, 200):
        cv2.imwrite(str(photo), np.full((20 + value, 20, 3), value, np.uint8))
        assert kept.read(photo).max() == value
    assert kept.read(paths[0], 0).shape != kept.read(paths[0], 72).shape
    photo.unlink()
    with pytest.raises(PhotoError, match="cannot be opened"):
        kept.read(photo)


def test_a_full_disk_ends_the_keeping_and_nothing_else(paths, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(cache.np, "save", full)
    kept = PhotoCache(tmp_path / "decoded", 10**9)
    np.testing.assert_array_equal(kept.read(paths[0], 72), read_photo(paths[0], 72))
    assert not os.listdir(tmp_path / "decoded")


def test_a_file_that_a_power_failure_left_empty_is_made_anew(paths, tmp_path):
    kept = PhotoCache(tmp_path / "decoded", 10**9)
    wanted = kept.read(paths[0], 72)
    (file,) = (tmp_path / "decoded").iterdir()
    for left in (b"", file.read_bytes()[:1000]):
        file.write_bytes(left)
        np.testing.assert_array_equal(kept.read(paths[0], 72), wanted)
        assert np.load(file).nbytes == wanted.nbytes


def test_two_runs_below_one_folder_do_not_trip_over_each_other(paths, tmp_path, monkeypatch):
    kept = PhotoCache(tmp_path / "decoded", 10**9)
    shutil.rmtree(tmp_path / "decoded")  # the other ended
    kept.read(paths[0], 72)
    assert len(os.listdir(tmp_path / "decoded")) == 1
    there = list((tmp_path / "decoded").iterdir())
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([*there, folder / "renamed meanwhile"]))
    assert PhotoCache(tmp_path / "decoded", 10**9).used.value == there[0].stat().st_size


def test_two_runs_at_once_keep_together_what_one_may(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "RECOUNT", 1)
    one, other = (PhotoCache(tmp_path / "decoded", 3 * (read_photo(paths[0], 72).nbytes + 128)) for _ in range(2))
    for i, path in enumerate(paths):
        (one, other)[i % 2].read(path, 72)
    assert len(paths) >= 8
    assert 3 <= len(os.listdir(tmp_path / "decoded")) <= 4  # each knows of the other's when it keeps one itself


def test_after_another_run_took_the_folder_along_there_is_room_again(paths, tmp_path):
    kept = PhotoCache(tmp_path / "decoded", read_photo(paths[0], 72).nbytes)
    kept.read(paths[0], 72)
    shutil.rmtree(tmp_path / "decoded")
    kept.read(paths[0], 72)
    assert len(os.listdir(tmp_path / "decoded")) == 1


def test_what_is_kept_already_does_not_lower_the_limit(tmp_path, monkeypatch):
    def disk_of_1000_bytes(folder):
        return SimpleNamespace(free=1000 - sum(file.stat().st_size for file in folder.iterdir()))

    monkeypatch.setattr(cache.shutil, "disk_usage", disk_of_1000_bytes)
    assert PhotoCache(tmp_path / "decoded", 10**9).limit == 500
    (tmp_path / "decoded" / "kept.npy").write_bytes(bytes(500))
    assert PhotoCache(tmp_path / "decoded", 10**9).limit == 500


def test_another_user_s_photos_are_read_where_they_may_be_and_decoded_where_not(paths, tmp_path, monkeypatch):
    kept = PhotoCache(tmp_path / "decoded", 10**9)
    wanted = kept.read(paths[0], 72)
    (file,) = (tmp_path / "decoded").iterdir()
    assert file.stat().st_mode & 0o777 == 0o644

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", refused)
    np.testing.assert_array_equal(kept.read(paths[0], 72), wanted)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="--cache: .*decoded cannot be made .*Give an --out"):
        PhotoCache(tmp_path / "file" / ".decoded", 1)
