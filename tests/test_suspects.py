import numpy as np
import pandas as pd
import pytest

from dataset import DataError
from tools import suspects


@pytest.fixture
def table(drawn, rng):
    """36 photos of three genera, well told apart out of fold; two stand under a wrong label."""
    genera = ["Agaricus", "Amanita", "Boletus"]
    paths = [str(path) for genus in genera for path in sorted((drawn / genus).glob("*.jpg"))]
    probs = 0.02 * rng.dirichlet(np.ones(3), 36) + 0.98 * (0.1 + 0.7 * np.eye(3)[np.arange(36) // 12])
    probs[[3, 30]] = [0.9, 0.05, 0.05], [0.05, 0.05, 0.9]
    labels = np.repeat(genera, 12)
    labels[[3, 30]] = ["Boletus", "Amanita"]
    return pd.DataFrame({"image": paths, "label": labels, "fold": 0, **dict(zip(genera, probs.T, strict=True))})


def test_the_photos_under_a_wrong_label_are_found_and_shown(table, tmp_path, capsys):
    table.to_csv(tmp_path / "oof.csv", index=False)
    suspects.main(tmp_path / "oof.csv", out=tmp_path / "suspects.csv")
    found = pd.read_csv(tmp_path / "suspects.csv")
    assert set(found.image) == set(table.image[[3, 30]])
    assert dict(zip(found.label, found.answer, strict=True)) == {"Boletus": "Agaricus", "Amanita": "Boletus"}
    assert (found.prob < found.answer_prob).all()
    assert found.prob.is_monotonic_increasing
    assert (tmp_path / "suspects.png").stat().st_size > 10_000
    assert "2 of 36 labels in doubt" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_a_class_without_photos_is_no_trouble(table):
    few = table[table.label != "Amanita"]
    assert suspects.suspects(few).image.tolist() == [table.image[3]]


@pytest.mark.parametrize("out", ["list.png", "oof.csv", "photo.csv"])
def test_neither_list_nor_picture_takes_the_place_of_what_is_read_or_of_each_other(table, tmp_path, out):
    table.loc[5, "image"] = str(tmp_path / "photo.png")
    table.to_csv(tmp_path / "oof.csv", index=False)
    before = (tmp_path / "oof.csv").read_bytes()
    with pytest.raises(ValueError, match="its picture would take its place|would be lost"):
        suspects.main(tmp_path / "oof.csv", out=tmp_path / out)
    assert (tmp_path / "oof.csv").read_bytes() == before


@pytest.mark.parametrize(("moved", "said"), [
    ([3], "suspects.png shows the first 1; 1 are no longer where they were"),
    ([3, 30], "2 of 36 labels in doubt; 2 are no longer where they were; there is nothing to draw")])
def test_photos_that_have_moved_since_are_left_out_of_the_picture(table, tmp_path, capsys, moved, said):
    table.loc[moved, "image"] = "gone.jpg"
    table.to_csv(tmp_path / "oof.csv", index=False)
    suspects.main(tmp_path / "oof.csv", out=tmp_path / "suspects.csv")
    assert said in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "suspects.csv")) == 2
    assert (tmp_path / "suspects.png").exists() == (len(moved) < 2)


def test_where_all_photos_have_moved_no_list_is_made_and_the_remedy_told(table, tmp_path):
    table.assign(image="gone.jpg").to_csv(tmp_path / "oof.csv", index=False)
    with pytest.raises(DataError, match=r"oof.csv: none of its photos is where it was \(gone.jpg\). .+ once more, with --out .+ as --data"):
        suspects.main(tmp_path / "oof.csv", out=tmp_path / "suspects.csv")
    assert not (tmp_path / "suspects.csv").exists()


def test_a_picture_of_no_photo_is_refused_before_the_list_is_written(table, tmp_path):
    table.to_csv(tmp_path / "oof.csv", index=False)
    with pytest.raises(ValueError, match="--most 0: use 1 or more."):
        suspects.main(tmp_path / "oof.csv", out=tmp_path / "suspects.csv", most=0)
    assert not (tmp_path / "suspects.csv").exists()


def test_where_no_label_is_in_doubt_there_is_no_picture(table, tmp_path, capsys):
    table.drop(index=[3, 30]).to_csv(tmp_path / "oof.csv", index=False)
    suspects.main(tmp_path / "oof.csv", out=tmp_path / "suspects.csv")
    assert len(pd.read_csv(tmp_path / "suspects.csv")) == 0
    assert not (tmp_path / "suspects.png").exists()
    assert "none of 34 labels is in doubt" in capsys.readouterr().out


def test_another_table_is_named_with_the_remedy(table, tmp_path):
    (tmp_path / "empty.csv").write_text("image,label,fold,a,b\n")
    with pytest.raises(DataError, match=r"empty.csv: not a table of out-of-fold predictions"):
        suspects.main(tmp_path / "empty.csv")
    with pytest.raises(DataError, match=r"none.csv: no such table. Give the oof.csv"):
        suspects.main(tmp_path / "none.csv")
    table.drop(columns="Amanita").to_csv(tmp_path / "cut.csv", index=False)
    with pytest.raises(DataError, match=r"first line must be image,label, the name of each class, and fold"):
        suspects.main(tmp_path / "cut.csv")
