import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from config import LARGEST_PHOTO, MOST_DIRECTIONS, Config, ConfigError


def test_what_can_be_trained_can_be_asked():
    config = Config(image_size=LARGEST_PHOTO, covariance=MOST_DIRECTIONS)
    assert (config.image_size, config.covariance) == (LARGEST_PHOTO, MOST_DIRECTIONS)


def test_defaults_are_the_entry_s():
    config = Config()
    assert (config.model, config.epochs, config.batch) == ("tf_efficientnet_b6.ns_jft_in1k", 30, 64)
    assert config.rho > 0
    assert config.mixup > 0


@pytest.mark.parametrize(("begin", "end", "first"), [(1.0, 1.0, 1.0), (0.5, 1.0, 0.5), (1.0, 0.7, 0.7), (0.6, 0.8, 0.6)])
def test_training_begins_no_larger_than_it_ends(begin, end, first):
    assert Config(progressive=begin, train_share=end).size_shares == (first, end)


@pytest.mark.parametrize(("knob", "value"), [
    ("folds", 1), ("fold", 5), ("fold", -2), ("image_size", 16), ("image_size", LARGEST_PHOTO + 1), ("image_size", -224), ("workers", -2),
    ("cache", -1.0), ("epochs", -1), ("covariance", -1), ("covariance", MOST_DIRECTIONS + 1),
    ("batch", 1), ("accumulate", 0), ("lr", 0.0), ("lr", float("nan")), ("lr", float("inf")), ("momentum", 1.0), ("weight_decay", -0.1),
    ("warmup", 1.0), ("progressive", 0.1), ("layer_decay", 0.0), ("freeze", 1.5), ("ema", 1.0), ("smoothing", 1.0), ("focal", -1.0),
    ("arcface", 1.6), ("arcface_scale", 0.0), ("arcface_scale", 2000.0), ("head_lr", -0.1), ("augment", 1.1), ("clip", -1.0),
    ("mixup", -0.2), ("mixup_end", 0.0), ("rho", -0.05), ("rho", float("nan")), ("train_share", 0.1), ("train_share", 1.1),
    ("sam_every", 0), ("sam_start", 1.5), ("seed", -1), ("seed", 2**32),
    ("track", "no_such_tracker"), ("schedule", "x"), ("workers", 1000)])
def test_a_value_that_cannot_work_is_named_with_its_remedy(knob, value):
    with pytest.raises(ConfigError, match=f"--{knob.replace('_', '-')} {value}: .+"):
        Config(**{knob: value})


@pytest.mark.parametrize(("knob", "value", "wanted"), [
    ("refit", "off", "True or False"), ("asam", 1, "True or False"), ("sam_every", 1.5, "a whole number"),
    ("epochs", True, "a whole number"), ("batch", None, "a whole number"), ("lr", "0.008", "a number"), ("rho", False, "a number"),
    ("model", None, "text in quotes"), ("data", 5, "a path"), ("data", None, "a path")])
def test_a_value_of_another_kind_is_refused_and_not_taken_for_one(knob, value, wanted):
    with pytest.raises(ConfigError, match=f"--{knob.replace('_', '-')} {value!r}: use {wanted}"):
        Config(**{knob: value})


def test_a_path_may_be_written_as_text_and_a_number_without_its_point():
    config = Config(data="photos", out="runs/mine", cache=20)
    assert (config.data, config.out, config.resume, config.cache) == (Path("photos"), Path("runs/mine"), None, 20)


def test_a_tracker_s_name_from_a_stranger_s_checkpoint_runs_nothing(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="--track trap.x: use one of none, tensorboard, trackio, wandb"):
        Config.from_dict(Config().to_dict() | {"track": "trap.x"})


def test_random_weights_cannot_be_frozen():
    with pytest.raises(ConfigError, match="--freeze 0.5: --weights none .+"):
        Config(freeze=0.5, weights="none")


def test_config_survives_the_way_through_a_checkpoint(tmp_path):
    config = Config(data=tmp_path, out=tmp_path / "x", lr=0.5)
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("knob", "arcface", "then"), [("covariance", 0.0, 0), ("arcface_scale", 0.3, 30.0), ("arcface_scale", 0.0, 64.0)])
def test_a_knob_that_an_older_run_had_not_is_as_it_was(knob, arcface, then):
    values = Config(arcface=arcface).to_dict()
    del values[knob]
    assert getattr(Config.from_dict(values), knob) == then


def test_a_knob_of_another_version_is_an_error():
    with pytest.raises(ConfigError, match="another version"):
        Config.from_dict(Config().to_dict() | {"knob_of_the_future": 1})


def test_differences_are_what_was_changed():
    assert Config(lr=0.5, asam=True).differences() == {"lr": 0.5, "asam": True}


def test_help_shows_each_knob_with_its_comment_and_default():
    text = subprocess.run([sys.executable, "-c", "import tyro; from config import Config; tyro.cli(Config)", "--help"],
                          cwd=ROOT, capture_output=True, text=True).stdout
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "ascent radius in weight space" in text
    assert "(default: 0.05)" in text


def test_a_misspelt_flag_is_an_error_that_suggests_the_right_one():
    run = subprocess.run([sys.executable, "-c", "import tyro; from config import Config; tyro.cli(Config)", "--epoch", "3"],
                         cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "--epochs" in run.stderr + run.stdout
