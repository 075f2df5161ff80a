import multiprocessing
import shutil
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REAL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cache import PhotoCache
from dataset import Batches, DataError, Photos, describe, find_trouble, load_table, make_loader, read_csv, split
from transforms import RandomViews
from views import FixedViews


def make_photos(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Photos of coarse noise: no two alike."""
    rng = np.random.default_rng(seed)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((80, 60)).save(folder / label / f"{i}.jpg")
    return folder


def ready(data: Path, fold: int = 0, folds: int = 5) -> pd.DataFrame:
    return split(find_trouble(load_table(data)), fold, folds, seed=0)


# --- the table ---

def test_a_folder_of_class_folders_in_any_script(tmp_path):
    table = load_table(make_photos(tmp_path, {"Боровик": 2, "蘑菇": 3, "Fly agaric": 1}))
    assert table.label.value_counts().to_dict() == {"蘑菇": 3, "Боровик": 2, "Fly agaric": 1}


def test_train_val_and_test_folders_are_kept_as_they_are(tmp_path):
    for side, count in {"train": 4, "val": 2, "test": 1}.items():
        make_photos(tmp_path / side, {"a": count, "b": count}, seed=count)
    assert ready(tmp_path).side.value_counts().to_dict() == {"train": 8, "val": 4, "test": 2}


def test_train_and_test_folders_alone_leave_validation_to_the_split(tmp_path):
    for side, count in {"train": 10, "test": 2}.items():
        make_photos(tmp_path / side, {"a": count, "b": count}, seed=count)
    assert ready(tmp_path).side.value_counts().to_dict() == {"train": 16, "val": 4, "test": 4}


def test_a_csv_with_paths_relative_to_it(tmp_path):
    make_photos(tmp_path / "x", {"a": 1, "b": 1})
    (tmp_path / "t.csv").write_text("image,label,group\nx/a/0.jpg,A,1\nx/b/0.jpg,B,2\n")
    table = load_table(tmp_path / "t.csv")
    assert table[["label", "group"]].values.tolist() == [["A", "1"], ["B", "2"]]
    assert all(Path(path).is_file() for path in table.path)


def test_a_folder_s_photos_csv_is_used_for_its_groups(tmp_path):
    make_photos(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "photos.csv").write_text("image,label,group\na/0.jpg,a,find 1\nb/0.jpg,b,find 2\n")
    assert load_table(tmp_path).group.tolist() == ["find 1", "find 2"]


@pytest.mark.parametrize(("text", "message"), [
    ("", r"no column image \(found: none\)"), ("image,label\n", "no rows.*Three ways"),
    ("image,label\nx/a/0.jpg\n", "row 2: label is empty"), ("image,label\nx/a/0.jpg,a,b\n", "row 2: more cells than columns"),
    ("image,label\n" + "x" * 200_000, "not a CSV"), ("image,label,label\nx,a,b\n", "column label twice"),
    ("photo,label\nx,y\n", r"no column image \(found: photo, label\)"),
    ("image,label\nnone.jpg,a\n", r"row 2: no such photo none.jpg \(looked in"), ("image,label\nx/a/0.jpg,\n", "row 2: label is empty"),
    ("image,label\nx/a/0.jpg,a\n", "all photos are of one class, a")])
def test_a_csv_that_cannot_be_used_is_named_with_row_and_remedy(tmp_path, text, message):
    make_photos(tmp_path / "x", {"a": 1})
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_table(tmp_path / "t.csv")


def test_a_csv_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("image,label\nä.jpg,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_csv(tmp_path / "t.csv")


def test_no_photos_says_three_ways_to_get_some(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=r"one folder of photos per class.*download\.py.*draw\.py"):
            load_table(folder)


def test_photos_one_folder_further_down_are_pointed_at(tmp_path):
    make_photos(tmp_path / "set", {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"pass --data .*set"):
        load_table(tmp_path)


# --- the split ---

def test_near_duplicates_stay_together_and_are_told(tmp_path):
    make_photos(tmp_path, {"a": 15, "b": 15})
    for i in range(10):
        Image.open(tmp_path / "a" / f"{i}.jpg").resize((160, 120)).save(tmp_path / "a" / f"{i}_again.png")
    shutil.copy(tmp_path / "a" / "0.jpg", tmp_path / "b" / "same.jpg")
    for fold in range(5):
        table = ready(tmp_path, fold)
        sides = table.groupby(table.path.str.extract(r"a/(\d+)")[0]).side.nunique()
        assert (sides == 1).all()
    text = describe(table)
    assert "11 near-duplicates" in text
    assert "1 photos stand under two labels" in text
    assert "same.jpg" in text


def test_what_is_like_a_photo_that_judges_is_set_aside(tmp_path):
    for side, photos in (("train", 12), ("test", 2)):
        make_photos(tmp_path / side, {"a": photos, "b": photos}, seed=photos)
    shutil.copy(tmp_path / "test" / "b" / "0.jpg", tmp_path / "train" / "b" / "twin.jpg")
    for inside in ((), ("a", "b")):                                         # val is cut from train/, then given as a folder
        for label in inside:
            (tmp_path / "val" / label).mkdir(parents=True)
            shutil.copy(tmp_path / "train" / label / "1.jpg", tmp_path / "val" / label)
        for fold in range(3):
            table = ready(tmp_path, fold, folds=3)
            assert (table[table.side != ""].groupby("cluster").side.nunique() == 1).all()
            aside = {str(Path(path).relative_to(tmp_path)) for path in table.path[table.side == ""]}
            assert aside == {"train/b/twin.jpg"} | {f"train/{label}/1.jpg" for label in inside}
            assert set(table.side) == {"", "train", "val", "test"}
            assert f"{len(aside)} photos set aside, as they are like some that validate or test, e.g." in describe(table)


def test_a_val_folder_that_is_a_copy_of_test_is_refused(tmp_path):
    for side, photos in (("train", 10), ("test", 2)):
        make_photos(tmp_path / side, {"a": photos, "b": photos}, seed=photos)
    shutil.copytree(tmp_path / "test", tmp_path / "val")
    with pytest.raises(DataError, match="each photo of val/ is like one of test/"):
        ready(tmp_path)


def test_classes_of_one_find_each_leave_nothing_to_validate():
    table = pd.DataFrame({"path": list("12345678"), "label": list("aaaabbbb"), "side": "", "error": "", "cluster": [0] * 4 + [1] * 4})
    with pytest.raises(DataError, match="no photo is left to validate"):
        split(table, 0, 2, seed=0)


def test_a_class_that_cannot_be_read_has_nothing_to_learn_from():
    table = pd.DataFrame({"path": list("12345678"), "label": list("aaaaaaab"), "side": "", "cluster": range(8),
                          "error": [""] * 7 + ["broken"]})
    with pytest.raises(DataError, match="no photo to train on for: b"):
        split(table, 0, 2, seed=0)


def test_an_unreadable_photo_is_named_and_left_out(tmp_path):
    make_photos(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "broken.jpg").write_bytes(b"not a photo")
    table = ready(tmp_path)
    assert table[table.side == ""].path.tolist() == [str(tmp_path / "a" / "broken.jpg")]
    assert "left out, cannot be read" in describe(table)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=40, max_size=120), st.integers(0, 4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_group_is_never_on_both_sides_and_folds_cover_all(rows, fold, seed):
    table = pd.DataFrame([{"path": str(i), "label": label, "group": f"{label}{group}", "side": "", "error": ""}
                          for i, (label, group) in enumerate(rows)])
    table["cluster"] = table.groupby("group").ngroup()
    try:
        cuts = [split(table, f, 5, seed) for f in range(5)]
    except DataError:
        return  # too few groups for five folds, or a class all on one side: said so
    cut = cuts[fold]
    assert (cut.groupby("cluster").side.nunique() == 1).all()
    assert set(cut.label[cut.side == "train"]) == set(table.label)
    judged = sum((c.side == "val").to_numpy().astype(int) for c in cuts)
    finds = table.groupby("label").group.transform("nunique")
    assert set(judged) == {1} if (finds > 4).all() else set(judged) <= {0, 1}


def test_a_class_called_all_is_counted_beside_the_sum(tmp_path):
    text = describe(ready(make_photos(tmp_path, {"all": 10, "b": 5})))
    assert [line.split() for line in text.splitlines()[2:5]] == [["all", "8", "2"], ["b", "4", "1"], ["all", "12", "3"]]


@pytest.mark.parametrize("name", ["image", "label", "fold"])
def test_a_class_may_not_be_called_as_a_column_of_the_answers(tmp_path, name):
    with pytest.raises(DataError, match=f"a class may not be called {name}, as val.csv has a column"):
        load_table(make_photos(tmp_path, {name: 1, "b": 1}))


def test_a_phone_s_photos_that_cannot_be_read_are_named(tmp_path):
    make_photos(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    shutil.copy(tmp_path / "a" / "1.jpg", tmp_path / "b" / "saved.jfif")
    table = ready(tmp_path)
    assert "IMG_1.HEIC: not a photo, or of a kind that is not supported" in describe(table)
    assert table.error[table.path.str.endswith("jfif")].tolist() == [""]


def test_the_split_is_stratified(tmp_path):
    table = ready(make_photos(tmp_path, {"a": 50, "b": 10}))
    assert table[table.side == "val"].label.value_counts().to_dict() == {"a": 10, "b": 2}


def test_a_class_of_one_photo_and_too_few_photos(tmp_path):
    make_photos(tmp_path, {"a": 9, "b": 1})
    for fold in range(5):                                                   # it is learnt from in each, and validates nothing
        table = ready(tmp_path, fold)
        assert table.side[table.label == "b"].tolist() == ["train"]
        assert (table.side == "val").any()
        assert "no photo validates b: too few, or of one find" in describe(table)
    assert table.side[table.label == "a"].tolist().count("val") in (1, 2)
    with pytest.raises(DataError, match="cannot be cut into 20 folds"):
        ready(tmp_path, folds=20)


# --- the batches ---

def batches_of(folder: Path, workers: int, epochs: int = 2) -> list:
    table = load_table(folder)
    sampler = Batches(len(table), batch=7, seed=3, epochs=epochs)
    loader = make_loader(Photos(table.path, RandomViews(48, 1), seed=3, min_side=0), sampler, workers)
    return [(images, index) for images, index, _ in loader]


def test_batches_are_the_same_byte_for_byte_with_any_number_of_workers(tmp_path):
    make_photos(tmp_path, {"a": 9, "b": 9})
    reference = batches_of(tmp_path, 0)
    for workers in (1, 2):
        for (images, index), (same, same_index) in zip(reference, batches_of(tmp_path, workers), strict=True):
            assert torch.equal(index, same_index)
            assert torch.equal(images, same)
            assert same.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)  # as the network wants it: no copy on the way
    def in_order(epoch):
        images, index = (torch.cat(part) for part in zip(*reference[3 * epoch:3 * epoch + 3], strict=True))
        return images[index.argsort()]

    first, second = in_order(0), in_order(1)
    assert not torch.equal(first, second)  # epochs differ


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 4), st.integers(0, 5))
def test_each_photo_once_an_epoch_in_equal_batches_over_all_processes(photos, batch, world, epoch):
    shares = [Batches(photos, batch, 1, epoch + 1, rank, world) for rank in range(world)]
    for share in shares:
        share.start = epoch * share.batches
    per_rank = [list(share) for share in shares]
    assert {number for rank in per_rank for keys in rank for number, _ in keys} == {epoch}
    seen = sorted(index for rank in per_rank for keys in rank for _, index in keys)
    assert seen == list(range(photos))
    sizes = [sum(len(rank[b]) for rank in per_rank) for b in range(len(per_rank[0]))]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1


def test_batches_can_start_in_the_middle():
    whole, rest = Batches(50, 8, seed=1, epochs=3), Batches(50, 8, seed=1, epochs=3)
    rest.start = 7 + 3  # of the second epoch's seven, three are done
    assert list(rest) == list(whole)[10:]
    assert len(rest) == len(list(rest)) == 11


def test_a_photo_that_vanishes_is_left_out_of_its_batch(tmp_path):
    make_photos(tmp_path, {"a": 3})
    paths = [str(tmp_path / "a" / f"{i}.jpg") for i in range(3)]
    (tmp_path / "a" / "1.jpg").unlink()
    images, index, errors = next(iter(make_loader(Photos(paths, FixedViews(32, 1.0), 0, 0), Batches(3, 3), 0)))
    assert index.tolist() == [0, 2]
    assert images.shape == (2, 1, 3, 32, 32)
    assert list(errors) == [1]


def test_workers_need_no_fork(drawn, tmp_path):
    """As on Windows and macOS: a worker begins as a new Python, and gets what it needs pickled."""
    paths, usual = sorted(map(str, drawn.rglob("*.jpg")))[::12], multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        photos = Photos(paths, RandomViews(64, 1), 0, 96, PhotoCache(tmp_path / ".decoded", 10**8).read)
        loaders = [make_loader(photos, Batches(9, 9, seed=0), workers) for workers in (1, 0)]
        (ours, our_index, _), (theirs, their_index, _) = (next(iter(loader)) for loader in loaders)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert our_index.tolist() == their_index.tolist()


@pytest.mark.parametrize("stay", [False, True])
def test_workers_of_a_loader_of_one_pass_end_with_it(drawn, stay):
    paths = sorted(map(str, drawn.rglob("*.jpg")))[::12]
    loader = make_loader(Photos(paths, FixedViews(32, 1.0), 0, 0), Batches(9, 9), 1, stay=stay)
    before = multiprocessing.active_children()
    assert len(list(loader)) == 1
    assert len(set(multiprocessing.active_children()) - set(before)) == stay


@pytest.mark.parametrize(("cores", "processes", "workers"), [(4, "1", 4), (64, "1", 16), (64, "8", 8), (2, "4", 1)])
def test_as_many_workers_as_cores_that_this_process_may_use(drawn, monkeypatch, cores, processes, workers):
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)                       # as accelerate launch says how many share the machine
    photos = Photos(sorted(map(str, drawn.rglob("*.jpg"))), FixedViews(32, 1.0), 0, 0)
    assert make_loader(photos, Batches(9, 9), -1).num_workers == workers


# --- real photos, where this checkout has them ---

@pytest.mark.parametrize("name", [d.name for d in sorted(REAL.glob("*")) if d.is_dir()] or [None])
def test_real_photos_are_all_read_and_no_find_is_torn(name, drawn):
    table = ready(REAL / name if name else drawn)
    assert (table.error == "").all()
    assert (table.groupby("cluster").side.nunique() == 1).all()
    assert 0.12 < (table.side == "val").mean() < 0.28
