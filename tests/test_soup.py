import dataclasses
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL

import checkpoint
import main
import record
from checkpoint import CheckpointError
from tools import soup


@pytest.fixture
def runs(run, small_config):
    return [run / "best.pt", main.train(dataclasses.replace(small_config, epochs=1, lr=0.05)) / "best.pt"]


def test_a_soup_takes_the_place_of_none_of_its_parts(run):
    before = (run / "best.pt").read_bytes()
    with pytest.raises(ValueError, match="would be lost"):
        soup.main((run, run / "head.pt"), out=run / "best.pt")
    assert (run / "best.pt").read_bytes() == before


def test_mean_weights_by_hand():
    mean = soup.mean_weights([{"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(3)}, {"w": torch.tensor([3.0, 0.0]), "n": torch.tensor(9)}])
    assert mean["w"].tolist() == [2, 2]
    assert mean["n"] == 3


def test_a_soup_is_the_mean_judged_on_the_first_run_s_validation_photos(runs, tmp_path, capsys):
    soup.main(tuple(runs), out=tmp_path / "soup.pt", batch=16, workers=0)
    one, two, mean = (checkpoint.load(path)["weights"] for path in [*runs, tmp_path / "soup.pt"])
    torch.testing.assert_close(mean["head.weight"], (one["head.weight"] + two["head.weight"]) / 2)
    one_refit, two_refit, refit = (checkpoint.load(path)["refit"] for path in [*runs, tmp_path / "soup.pt"])
    torch.testing.assert_close(refit["weight"], (one_refit["weight"] + two_refit["weight"]) / 2)
    lines = capsys.readouterr().out.splitlines()
    for path, line in zip([*runs, tmp_path / "soup.pt"], lines[-3:], strict=True):
        assert line.startswith(f"{path}: accuracy 0.")
    for path, line in zip(runs, lines[-3:], strict=False):
        assert f"accuracy {checkpoint.load(path)['history'][-1]['val_accuracy']:.4f}" in line

    soup.main((runs[0], runs[0]), out=tmp_path / "same.pt", greedy=True, workers=0)
    assert "head.weight" in checkpoint.load(tmp_path / "same.pt")["weights"]
    other = {k: v for k, v in checkpoint.load(runs[1]).items() if k != "format"} | {"classes": list("abcdefghi"), "notes": {}}
    checkpoint.save(tmp_path / "other.pt", other)
    with pytest.raises(CheckpointError, match="other.pt: differs from .*best.pt in its classes"):
        soup.main((runs[0], tmp_path / "other.pt"), out=tmp_path / "soup.pt")
    checkpoint.save(tmp_path / "cosine.pt", {k: v for k, v in checkpoint.load(runs[1]).items() if k != "format"} | {"cosine": 64.0})
    with pytest.raises(CheckpointError, match="cosine.pt: differs from .*best.pt in its cosine"):
        soup.main((runs[0], tmp_path / "cosine.pt"), out=tmp_path / "soup.pt")
    odd = {k: v for k, v in checkpoint.load(runs[1]).items() if k != "format"}
    checkpoint.save(tmp_path / "odd.pt", odd | {"refit": {}, "weights": odd["weights"] | {"head.weight": torch.zeros(3, 5)}})
    with pytest.raises(CheckpointError, match="odd.pt: its weights do not fit those of"):
        soup.main((runs[0], tmp_path / "odd.pt"), out=tmp_path / "soup.pt")
    with pytest.raises(CheckpointError, match="no checkpoint given"):
        soup.main((), out=tmp_path / "soup.pt")
    with pytest.raises(CheckpointError, match="no photos.csv. Leave soup.pt"):
        soup.main((tmp_path / "soup.pt",), out=tmp_path / "again.pt")


@pytest.mark.parametrize("fresh_is_better", [True, False])
def test_batchnorm_s_statistics_are_the_mean_s_own_only_where_these_do_better(runs, tmp_path, monkeypatch, fresh_is_better):
    scores = iter([0.1, 0.2, 0.5, 0.6 if fresh_is_better else 0.5])        # of each part, of their mean, of the mean refreshed
    monkeypatch.setattr(soup.metrics, "accuracy", lambda probs, labels: next(scores))
    soup.main(tuple(runs), out=tmp_path / "soup.pt", workers=0)
    one, two, mean = (checkpoint.load(path)["weights"]["backbone.bn1.running_mean"] for path in [*runs, tmp_path / "soup.pt"])
    assert torch.allclose(mean, (one + two) / 2) is not fresh_is_better


def test_a_model_s_mean_with_itself_answers_no_worse(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    soup.main((run, copy), out=tmp_path / "soup.pt", workers=0)
    own, _, mean = (float(line.split("accuracy ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines())
    assert mean >= own


def test_a_soup_of_folds_has_no_score_and_their_mean_temperature(run, small_config, tmp_path, capsys):
    folds = main.train_each_fold(dataclasses.replace(small_config, fold=-1, folds=2, epochs=1), main.train)
    capsys.readouterr()
    soup.main((folds,), out=tmp_path / "soup.pt", workers=0)
    assert capsys.readouterr().out.endswith("soup.pt: the mean of 2 models; no score, as each photo was learnt from by some of them\n")
    one, two, mean = (checkpoint.load(path) for path in (folds / "fold0/best.pt", folds / "fold1/best.pt", tmp_path / "soup.pt"))
    torch.testing.assert_close(mean["weights"]["head.weight"], (one["weights"]["head.weight"] + two["weights"]["head.weight"]) / 2)
    torch.testing.assert_close(mean["refit"]["weight"], (one["refit"]["weight"] + two["refit"]["weight"]) / 2)
    one_bn, two_bn, mean_bn = (saved["weights"]["backbone.bn1.running_mean"] for saved in (one, two, mean))
    torch.testing.assert_close(mean_bn, (one_bn + two_bn) / 2)
    assert mean["temperatures"] == pytest.approx((np.array(one["temperatures"]) + two["temperatures"]) / 2)
    assert mean["known_limits"] == one["known_limits"] != two["known_limits"]
    assert torch.equal(mean["weights"]["known.means"], one["weights"]["known.means"])
    with pytest.raises(CheckpointError, match="--greedy: the runs have other splits"):
        soup.main((folds,), out=tmp_path / "soup.pt", greedy=True, workers=0)


def test_runs_between_which_photos_were_added_have_no_score_together(run, tmp_path, capsys):
    shutil.copy(run / "best.pt", tmp_path)
    photos = record.read_table(run / "photos.csv")
    record.write_table(tmp_path / "photos.csv", photos.assign(side=photos.side.map({"train": "val", "val": "train"})))
    soup.main((run / "best.pt", tmp_path / "best.pt"), out=tmp_path / "soup.pt", workers=0)
    assert capsys.readouterr().out.endswith("no score, as each photo was learnt from by some of them\n")


def test_one_split_is_one_however_its_folder_was_named(run, tmp_path, capsys):
    saved = checkpoint.load(run / "best.pt")
    checkpoint.save(tmp_path / "best.pt", saved | {"config": saved["config"] | {"data": "../drawn"}})
    shutil.copy(run / "photos.csv", tmp_path)
    soup.main((run / "best.pt", tmp_path / "best.pt"), out=tmp_path / "soup.pt", workers=0)
    assert "soup.pt: accuracy" in capsys.readouterr().out
    (tmp_path / "alone").mkdir()
    alone = shutil.move(tmp_path / "best.pt", tmp_path / "alone" / "best.pt")  # what it learnt from is not known here
    soup.main((run / "best.pt", alone), out=tmp_path / "soup.pt", workers=0)
    assert "no score, as" in capsys.readouterr().out


def test_a_head_without_a_refit_among_others_is_told(run, tmp_path, capsys):
    checkpoint.save(tmp_path / "plain.pt", checkpoint.load(run / "best.pt") | {"refit": {}})
    shutil.copy(run / "photos.csv", tmp_path)
    soup.main((run / "best.pt", tmp_path / "plain.pt"), out=tmp_path / "soup.pt", workers=0)
    assert "1 of the 2 heads were not refitted (--no-refit): the mean's has not learnt" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "soup.pt")["refit"] == {}


def test_heads_that_see_other_directions_have_no_mean(small_config, tmp_path):
    torch.save(timm.create_model(SMALL).state_dict(), tmp_path / "weights.pth")
    config = dataclasses.replace(small_config, weights=str(tmp_path / "weights.pth"), covariance=4, epochs=1)
    runs = [main.train(dataclasses.replace(config, **knobs, out=tmp_path / name))
            for name, knobs in (("a", {}), ("b", {"batch": 24}), ("other", {"fold": 1}))]
    soup.main((runs[0], runs[1]), out=tmp_path / "soup.pt", workers=0)
    mean, one = (checkpoint.load(path)["weights"] for path in (tmp_path / "soup.pt", runs[0] / "best.pt"))
    torch.testing.assert_close(mean["covariances.0.W"], one["covariances.0.W"], rtol=0, atol=1e-2)
    with pytest.raises(CheckpointError, match="other/best.pt: its directions of covariance .* in different photos, as folds' are"):
        soup.main((runs[0], runs[2]), out=tmp_path / "soup.pt", workers=0)


def test_photos_that_have_moved_are_named(run, tmp_path):
    shutil.copy(run / "best.pt", tmp_path)
    table = record.read_table(run / "photos.csv")
    record.write_table(tmp_path / "photos.csv", table.assign(path=table.path.where(table.side != "val", "gone.jpg")))
    with pytest.raises(CheckpointError, match=r"none of its validation photos is where it was \(gone.jpg\)"):
        soup.main((tmp_path / "best.pt",), out=tmp_path / "soup.pt", workers=0)
