import multiprocessing
import shutil
from pathlib import Path

import joblib
import pytest
import torch
from conftest import REAL, make_photos, ready
from hypothesis import given
from hypothesis import strategies as st

import record
from cache import PhotoCache
from dataset import Batches, DataError, Photos, changes, file_sizes, found_again, load_table, make_loader, read_csv, unused
from predict import find_photos
from transforms import RandomViews
from views import FixedViews

FILE = Path("photos.csv")

# --- the table ---

def test_a_folder_of_class_folders_in_any_script(tmp_path):
    table = load_table(make_photos(tmp_path, {"Боровик": 2, "蘑菇": 3, "Fly agaric": 1}))
    assert table.label.value_counts().to_dict() == {"蘑菇": 3, "Боровик": 2, "Fly agaric": 1}


def test_a_csv_with_paths_relative_to_it(tmp_path):
    make_photos(tmp_path / "x", {"a": 1, "b": 1})
    (tmp_path / "t.csv").write_text("image,label,group\nx/a/0.jpg,A,1\nx/b/0.jpg,B,2\n")
    table = load_table(tmp_path / "t.csv")
    assert table[["label", "group"]].values.tolist() == [["A", "1"], ["B", "2"]]
    assert all(Path(path).is_file() for path in table.path)


def test_spaces_of_any_script_may_stand_in_a_class_and_none_around_it(tmp_path):
    make_photos(tmp_path, {"毒\u3000鹅膏": 1, "death\u00a0cap": 1})
    assert load_table(tmp_path).label.tolist() == ["death\u00a0cap", "毒\u3000鹅膏"]
    (tmp_path / "t.csv").write_text("image,label\n毒\u3000鹅膏/0.jpg,a\n毒\u3000鹅膏/0.jpg, a \ndeath\u00a0cap/0.jpg,b\n")
    assert load_table(tmp_path / "t.csv").label.tolist() == ["a", "a", "b"]


def test_finds_are_one_whatever_space_stands_around_them_and_however_accents_are_written(tmp_path):
    make_photos(tmp_path / "x", {"a": 4})
    rows = ["x/a/0.jpg,Go\u0308,find 3,train", "x/a/1.jpg,G\u00f6,find 3 , train ", "x/a/2.jpg,b,  ,val", "x/a/3.jpg,b,,"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,group,side", *rows]))
    table = load_table(tmp_path / "t.csv")
    assert table[["label", "group", "side"]].values.tolist() == [
        ["G\u00f6", "find 3", "train"], ["G\u00f6", "find 3", "train"], ["b", "", "val"], ["b", "", "train"]]


def test_a_folder_that_macos_named_is_the_class_of_the_same_letters(tmp_path):
    make_photos(tmp_path, {"Go\u0308": 1, "b": 1})
    assert sorted(load_table(tmp_path).label) == ["G\u00f6", "b"]
    assert sorted(find_photos([tmp_path])[1]) == ["G\u00f6", "b"]


def test_photos_that_are_all_gone_end_what_would_go_on(tmp_path):
    table = load_table(make_photos(tmp_path / "x", {"a": 1, "b": 1})).assign(bytes=1)
    assert "2 changed. The result will differ" in changes(table, tmp_path / "x")
    added = table.assign(bytes=file_sizes(table.path)).iloc[:1]
    assert changes(added, tmp_path / "x").endswith("photos since the run began: 1 new, not used.")
    record.write_table(tmp_path / "photos.csv", table.assign(side=["train", "val"]))
    assert record.read_photos(tmp_path).bytes.tolist() == [1, 1]
    assert found_again(table, tmp_path / "nowhere", FILE).equals(table)
    (tmp_path / "x").rename(tmp_path / "y")
    for data in (tmp_path / "x", tmp_path / "nowhere", make_photos(tmp_path / "z", {"c": 1, "d": 1})):
        with pytest.raises(DataError, match=r"photos.csv: 0 of its 2 photos are in .*, or where they were \(.*0.jpg\).*as --data"):
            found_again(table, data, FILE)
    (tmp_path / "y" / "b" / "0.jpg").unlink()
    make_photos(tmp_path / "y", {"c": 1})
    moved = found_again(table, tmp_path / "y", FILE)
    assert moved.path.tolist() == [str(tmp_path / "y" / name / "0.jpg") for name in "ab"]
    assert "1 gone, 1 changed, 1 new" in changes(moved, tmp_path / "y")


@pytest.mark.parametrize("lost", [(), ("val/b/0.jpg",), ("val/a/0.jpg", "val/b/0.jpg")])
@pytest.mark.parametrize("as_csv", [False, True])
def test_photos_that_have_moved_are_found_though_some_are_lost(tmp_path, lost, as_csv):
    for side in ("train", "val"):
        make_photos(tmp_path / "x" / "photos" / side, {"a": 2, "b": 1})
    old, new = tmp_path / "x" / "photos", tmp_path / "y" / "photos"
    table = load_table(old).assign(bytes=lambda t: file_sizes(t.path))
    shutil.copytree(old, new)
    for name in lost:
        (new / name).unlink()
    assert found_again(table, old, FILE).path.equals(table.path)           # where they were, though a copy is elsewhere
    if as_csv:
        new = tmp_path / "y" / "photos.csv"
        new.touch()
    there = [path.replace("/x/", "/y/") for path in table.path]
    assert found_again(table, new, FILE).path.tolist() == (table.path.tolist() if lost else there)  # where most are; of two such, as asked
    shutil.rmtree(old)
    windows = table.assign(path=[path.replace(str(tmp_path / "x"), r"C:\my").replace("/", "\\") for path in table.path])
    for place in (new, tmp_path / "y"):                                    # the folder around it does too
        assert found_again(table, place, FILE).path.tolist() == found_again(windows, place, FILE).path.tolist() == there


def test_the_folder_of_a_table_is_that_of_its_photos_wherever_they_lie(tmp_path):
    make_photos(tmp_path / "photos", {"a": 1, "b": 1})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "photos.csv").write_text("image,label\n../photos/a/0.jpg,a\n../photos/b/0.jpg,b\n")
    table = load_table(tmp_path / "lists").assign(bytes=lambda t: file_sizes(t.path))
    assert found_again(table, tmp_path / "lists", FILE, named=True).equals(table)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="void: holds none of the photos"):
        found_again(table, tmp_path / "void", FILE, named=True)


def test_other_photos_of_the_same_names_are_not_those_that_have_moved(tmp_path):
    (tmp_path / "photos.csv").write_text("image,label\ncrops/a/0.jpg,a\ncrops/b/0.jpg,b\n")
    make_photos(tmp_path / "crops", {"a": 1, "b": 1})
    table = load_table(tmp_path).assign(bytes=lambda t: file_sizes(t.path))
    for path in table.path:
        original = Path(path.replace("/crops/", "/"))
        original.parent.mkdir()
        original.write_bytes(Path(path).read_bytes() + b"more")
    assert found_again(table, tmp_path, FILE).equals(table)


def test_two_slashes_at_the_root_make_no_share_of_windows(tmp_path):
    make_photos(tmp_path / "x", {"a": 1, "b": 1})
    table = load_table(Path("/" + str(tmp_path / "x"))).assign(bytes=lambda t: file_sizes(t.path))
    assert table.path.str.startswith("//").all()
    assert found_again(table, Path("/nowhere/x"), FILE).equals(table)


def test_a_place_with_a_few_of_the_photos_alone_is_none_they_have_moved_to(tmp_path):
    table = load_table(make_photos(tmp_path / "x", {"a": 3, "b": 2})).assign(bytes=lambda t: file_sizes(t.path))
    make_photos(tmp_path / "y", {"a": 1, "b": 1})
    assert found_again(table, tmp_path / "y", FILE).equals(table)          # most are where they were
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(DataError, match="2 of its 5 photos are in"):
        found_again(table, tmp_path / "y", FILE)


def test_paths_hold_from_any_folder(tmp_path, monkeypatch):
    make_photos(tmp_path / "x", {"a": 1, "b": 1})
    (tmp_path / "t.csv").write_text("image,label\nx/a/0.jpg,a\nx/b/0.jpg,b\n")
    monkeypatch.chdir(tmp_path)
    tables = [load_table(Path("x")), load_table(Path("t.csv"))]
    monkeypatch.chdir("/")
    assert all(table.path.tolist() == [str(tmp_path / "x" / name / "0.jpg") for name in "ab"] for table in tables)


def test_a_folder_s_photos_csv_is_used_for_its_groups(tmp_path):
    make_photos(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "photos.csv").write_text("image,label,group\na/0.jpg,a,find 1\nb/0.jpg,b,find 2\n")
    assert load_table(tmp_path).group.tolist() == ["find 1", "find 2"]


@pytest.mark.parametrize(("text", "message"), [
    ("", r"no column image \(found: none\)"), ("image,label\n", "no rows.*Three ways"),
    ("image,label\nx/a/0.jpg\n", "row 2: label is empty"), ("image,label\nx/a/0.jpg,a,b\n", "row 2: more cells than columns"),
    ("image,label\n" + "x" * 200_000, "not a CSV"), ("image,label,label\nx,a,b\n", "column label twice"),
    ("image,label,side\nx/a/0.jpg,a,Test\n", "row 2: side Test. Use train, val or test, or leave it empty"),
    ("photo,label\nx,y\n", r"no column image \(found: photo, label\)[^,]+,label or image,label,group\.$"),
    ("image;label\nx;y\n", r"no column image \(found: image;label\).+group\. Put commas between the cells"),
    ("image,label\nnone.jpg,a\n", r"row 2: no such photo none.jpg \(looked in"), ("image,label\nx/a/0.jpg,\n", "row 2: label is empty"),
    ("image,label\nx/a/0.jpg,a\n", "all photos are of one class, a")])
def test_a_csv_that_cannot_be_used_is_named_with_row_and_remedy(tmp_path, text, message):
    make_photos(tmp_path / "x", {"a": 1})
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_table(tmp_path / "t.csv")


def test_a_csv_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("image,label\nä.jpg,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="t.csv: not a CSV in UTF-8. Save a table as CSV UTF-8"):
        read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize(("sides", "message"), [
    (["train", "valid"], "valid: holds class folders, but would not be used. Call it val, or move it out of "),
    (["train", "val", "validation"], "validation: holds class folders"),
    ([".", "test"], "test: .* Put the class folders beside it below train"), ([".", "val"], "val: .* below train")])
def test_photos_that_were_meant_to_judge_are_not_passed_over(tmp_path, sides, message):
    for side in sides:
        make_photos(tmp_path / side, {"a": 1, "b": 1})
    with pytest.raises(DataError, match=message):
        load_table(tmp_path)


def test_photos_that_no_class_folder_holds_and_files_of_other_kinds_are_told(tmp_path):
    make_photos(tmp_path / "train", {"a": 1, "b": 1, ".thumbnails": 1})
    assert unused(tmp_path, load_table(tmp_path)) == ""
    make_photos(tmp_path / "train" / "a", {"2021": 2})
    (tmp_path / "test").mkdir()
    (tmp_path / "train" / "a" / "0.jpg").rename(tmp_path / "test" / "1.jpg")
    make_photos(tmp_path / "train", {"a": 1})
    table = load_table(tmp_path)
    first = sorted(map(str, [tmp_path / "test" / "1.jpg", *(tmp_path / "train" / "a" / "2021").iterdir()]))[0]
    assert unused(tmp_path, table) == f"not used, as they lie in no class folder: 3 photos, e.g. {first}"
    for name in ("raw.dng", "no suffix", ".DS_Store"):
        (tmp_path / "train" / "b" / name).touch()
    assert unused(tmp_path, table).splitlines()[1:] == [
        f"not used, as their names end as no photo's: 2 files, e.g. {tmp_path / 'train' / 'b' / 'no suffix'}"]
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    for folder in (elsewhere, tmp_path / "train" / "all raw", tmp_path / "train" / "__pycache__"):
        folder.mkdir()
        (folder / "1.CR2").touch()
    (tmp_path / "train" / "linked").symlink_to(elsewhere)
    assert f"4 files, e.g. {tmp_path / 'train' / 'all raw' / '1.CR2'}" in unused(tmp_path, table)
    (tmp_path / "train" / "nothing").mkdir()
    assert f"as they are empty: 1 folders, e.g. {tmp_path / 'train' / 'nothing'}" in unused(tmp_path, table)
    (tmp_path / "photos.csv").write_text("image,label\ntrain/a/0.jpg,a\ntrain/b/0.jpg,b\n")
    assert unused(tmp_path, load_table(tmp_path)) == unused(tmp_path / "photos.csv", table) == ""


def test_sides_may_be_written_in_capitals(tmp_path):
    for side in ("Train", "VAL", "Test"):
        make_photos(tmp_path / side, {"a": 1, "b": 1})
    assert load_table(tmp_path).side.tolist() == ["train", "train", "val", "val", "test", "test"]
    make_photos(tmp_path / "Validation", {"a": 1})
    with pytest.raises(DataError, match="Validation: holds class folders, but would not be used"):
        load_table(tmp_path)


def test_sides_of_other_names_are_not_taken_for_a_set_of_photos(tmp_path):
    for side in ("training", "test"):
        make_photos(tmp_path / side, {"a": 1, "b": 1})
    with pytest.raises(DataError, match="But test, training have some: call the sides of a split train, val and test"):
        load_table(tmp_path)


def test_no_photos_says_three_ways_to_get_some(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=r"one folder of photos per class.*download\.py.*draw\.py"):
            load_table(folder)


@pytest.mark.parametrize("deep", ["set", "x/y/set"])
def test_photos_some_folders_further_down_are_pointed_at(tmp_path, deep):
    make_photos(tmp_path / deep, {"a": 1, "b": 1})
    with pytest.raises(DataError, match=f"pass --data .*{deep}\\.$"):
        load_table(tmp_path)


@pytest.mark.parametrize("inside", ["Amanita", "train"])
def test_photos_in_no_class_folder_are_counted(tmp_path, inside):
    make_photos(tmp_path, {inside: 3})
    folder = tmp_path if inside == "train" else tmp_path / inside
    with pytest.raises(DataError, match=f"3 photos lie in no class folder, e.g. .*0.jpg: .* if {folder.name} is a class itself, pass the"):
        load_table(folder)


@pytest.mark.parametrize("name", ["image", "label", "fold", "unknown", "deadly"])
def test_a_class_may_not_be_called_as_a_column_of_the_answers(tmp_path, name):
    with pytest.raises(DataError, match=f"a class may not be called {name}, as tables of answers have a column"):
        load_table(make_photos(tmp_path, {name: 1, "b": 1}))


def test_hidden_folders_are_no_classes(tmp_path):
    make_photos(tmp_path, {"a": 1, "b": 1, ".thumbnails": 1})
    assert sorted(load_table(tmp_path).label) == ["a", "b"]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    make_photos(tmp_path, {"a": 1, "lost+found": 1})
    real = Path.iterdir

    def refuses(folder: Path):
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", refuses)
    with pytest.raises(DataError, match=r"lost\+found: cannot be opened \(Permission denied\)\. Make it readable, or move it out of "):
        load_table(tmp_path)


# --- the batches ---

def batches_of(folder: Path, workers: int, epochs: int = 2) -> list:
    table = load_table(folder)
    sampler = Batches(len(table), batch=7, seed=3, epochs=epochs)
    loader = make_loader(Photos(table.path, RandomViews(48, 1, 0.5), seed=3, min_side=0), sampler, workers)
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


def test_each_epoch_has_an_order_of_its_own():
    keys = [key for batch in Batches(50, 8, seed=1, epochs=2) for key in batch]
    first, second = ([index for epoch, index in keys if epoch == number] for number in (0, 1))
    assert first != second
    assert sorted(first) not in (first, second)


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
        photos = Photos(paths, RandomViews(64, 1, 0.5), 0, 96, PhotoCache(tmp_path / ".decoded", 10**8).read)
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


def test_a_batch_is_of_views_and_each_of_many_processes_has_photos_to_answer():
    assert [sum(map(len, Batches(1200, 64, rank=rank, world=8, views=16))) for rank in range(8)] == [150] * 8
    assert [len(batch) for batch in Batches(8, 32, views=8)] == [4, 4]
    assert [len(batch) for batch in Batches(3, 4, views=8)] == [1, 1, 1]
