import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_photos, ready
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import split as split_module
from photos import DataError
from split import describe, split


def test_train_val_and_test_folders_are_kept_as_they_are(tmp_path):
    for side, count in {"train": 4, "val": 2, "test": 1}.items():
        make_photos(tmp_path / side, {"a": count, "b": count}, seed=count)
    assert ready(tmp_path).side.value_counts().to_dict() == {"train": 8, "val": 4, "test": 2}


def test_train_and_test_folders_alone_leave_validation_to_the_split(tmp_path):
    for side, count in {"train": 10, "test": 2}.items():
        make_photos(tmp_path / side, {"a": count, "b": count}, seed=count)
    assert ready(tmp_path).side.value_counts().to_dict() == {"train": 16, "val": 4, "test": 4}


def test_a_csv_s_column_side_is_kept_and_empty_means_train(tmp_path):
    make_photos(tmp_path, {"a": 20, "b": 20})
    sides = {0: "test", 1: "test", 2: ""}
    rows = [f"{label}/{i}.jpg,{label},{label}{i // 2},{sides.get(i, 'train')}" for label in "ab" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,group,side", *rows]))
    table = ready(tmp_path / "t.csv")
    number = table.path.str.extract(r"(\d+)\.jpg")[0].astype(int)
    assert set(table.side[number < 2]) == {"test"}
    assert table.side.value_counts().to_dict() == {"train": 28, "val": 8, "test": 4}
    for fold in range(5):
        assert (ready(tmp_path / "t.csv", fold).groupby("group").side.nunique() == 1).all()


def test_photos_like_one_another_and_photos_of_one_find_are_a_chain(tmp_path):
    make_photos(tmp_path, {"a": 20, "b": 20})
    shutil.copy(tmp_path / "a" / "0.jpg", tmp_path / "a" / "copy.jpg")
    rows = [f"{label}/{i}.jpg,{label},{'find' if (label, i) in (('a', 0), ('a', 9)) else ''}" for label in "ab" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,group", *rows, "a/copy.jpg,a,"]))
    for fold in range(5):
        table = ready(tmp_path / "t.csv", fold)
        assert table.side[table.path.str.contains(r"a/(?:0|9|copy)\.jpg")].nunique() == 1


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


@pytest.mark.parametrize("side", ["val", "test"])
def test_photos_that_should_judge_and_cannot_be_read_are_not_replaced_by_others(tmp_path, side):
    make_photos(tmp_path / "train", {"a": 10, "b": 10})
    for label in "ab":
        (tmp_path / side / label).mkdir(parents=True)
        (tmp_path / side / label / "1.heic").write_bytes(b"....ftypheic")
    with pytest.raises(DataError, match=f"none of the photos of {side} can be read"):
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


@pytest.mark.parametrize("many", [split_module.MANY, 0])  # above so many, they are dealt out
@given(rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=40, max_size=120), fold=st.integers(0, 4),
       seed=st.integers(0, 99))
@settings(max_examples=30)
def test_a_group_is_never_on_both_sides_and_folds_cover_all(many, rows, fold, seed):
    table = pd.DataFrame([{"path": str(i), "label": label, "group": f"{label}{group}", "side": "", "error": ""}
                          for i, (label, group) in enumerate(rows)])
    table["cluster"] = table.groupby("group").ngroup()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(split_module, "MANY", many)
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


def test_a_phone_s_photos_that_cannot_be_read_are_named(tmp_path):
    make_photos(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    shutil.copy(tmp_path / "a" / "1.jpg", tmp_path / "b" / "saved.jfif")
    table = ready(tmp_path)
    assert "IMG_1.HEIC: not a photo, or of a kind that is not supported" in describe(table)
    assert table.error[table.path.str.endswith("jfif")].tolist() == [""]


@pytest.mark.parametrize("many", [split_module.MANY, 0])
def test_the_split_is_stratified(tmp_path, monkeypatch, many):
    monkeypatch.setattr(split_module, "MANY", many)
    table = ready(make_photos(tmp_path, {"a": 50, "b": 10}))
    assert table[table.side == "val"].label.value_counts().to_dict() == {"a": 10, "b": 2}


def test_a_class_of_one_photo_and_too_few_photos(tmp_path):
    make_photos(tmp_path, {"a": 9, "b": 1})
    for fold in range(5):                                                   # it is learnt from in each, and validates nothing
        table = ready(tmp_path, fold)
        assert table.side[table.label == "b"].tolist() == ["train"]
        assert (table.side == "val").any()
        assert "no photo validates b: too few, of one find, or none in val/" in describe(table)
    assert table.side[table.label == "a"].tolist().count("val") in (1, 2)
    with pytest.raises(DataError, match="cannot be cut into 20 folds"):
        ready(tmp_path, folds=20)
