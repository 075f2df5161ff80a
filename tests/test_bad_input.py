"""Bad photos, tables and checkpoints, in short; `python -m tools.torture` does the same at length."""

import dataclasses
import os
import re
import shutil
import time

import pandas as pd
import pytest

import checkpoint
import main
import predict
from dataset import DataError, load_table
from photos import PhotoError, read_photo
from predict import Options, Predictor
from split import find_trouble, split
from text import shown
from tools import torture
from tools.bad_input import bad_tables, encoded, fuzzed, scene, write_bad_photos, write_hostile_checkpoints


def test_each_bad_photo_is_refused_with_a_reason_and_each_odd_one_is_read(tmp_path):
    refused, read = write_bad_photos(tmp_path)
    assert len(refused) + len(read) >= 90
    for name in refused:
        began = time.monotonic()
        with pytest.raises(PhotoError, match=".+"):
            read_photo(tmp_path / name)
        assert time.monotonic() - began < 5, name
    for name in read:
        began = time.monotonic()
        assert read_photo(tmp_path / name, min_side=64).shape[2] == 3
        assert time.monotonic() - began < 5, name
    reasons = {"pipe.jpg": "not a file", "endless.jpg": "not a file", "sparse.jpg": "smaller", "30000 x 30000.png": "smaller",
               "jpeg 2000.jpg": "not a photo", "portable.png": "not a photo", "shared tags.tif": "claim more"}
    for name, reason in reasons.items():
        with pytest.raises(PhotoError, match=reason):
            read_photo(tmp_path / name)


def test_a_progressive_jpeg_counts_as_large_as_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr("photos.MAX_PIXELS", 120_000)
    for name, progressive in (("plain.jpg", False), ("progressive.jpg", True)):
        (tmp_path / name).write_bytes(encoded(scene(800, 600), "JPEG", progressive=progressive))
    assert read_photo(tmp_path / "plain.jpg", min_side=100).shape == (150, 200, 3)
    with pytest.raises(PhotoError, match="800 x 600 pixels"):
        read_photo(tmp_path / "progressive.jpg", min_side=100)


def test_bytes_fuzzed_around_valid_headers_are_read_or_refused_in_time(tmp_path):
    outcomes = {True: 0, False: 0}
    for data in fuzzed(400, seed=1):
        (tmp_path / "x.jpg").write_bytes(data)
        began = time.monotonic()
        try:
            outcomes[read_photo(tmp_path / "x.jpg", min_side=32).size > 0] += 1
        except PhotoError:
            outcomes[False] += 1
        assert time.monotonic() - began < 5
    assert min(outcomes.values()) > 40  # the fuzz reaches behind the headers


def test_training_and_prediction_name_bad_photos_and_lose_nothing_else(small_config, drawn, tmp_path, capsys):
    data = shutil.copytree(drawn, tmp_path / "photos")
    refused, read = write_bad_photos(data / "Amanita")
    run = main.train(dataclasses.replace(small_config, data=data, epochs=1))
    printed = capsys.readouterr().out
    assert f"{108 + len(read)} photos, " in printed
    left_out = [line for line in printed.splitlines() if line.startswith("left out, cannot be read: ")]
    assert len(left_out) == len(refused)
    for name in refused:
        assert f"left out, cannot be read: {shown(data / 'Amanita' / name)}: " in printed
    table = pd.read_csv(run / "photos.csv", lineterminator="\n", encoding_errors="surrogateescape", keep_default_na=False)
    assert set(table.path[table.error != ""]) == {str(data / "Amanita" / name) for name in refused}

    refused = [name for name in refused if not (data / "Amanita" / name).is_dir()]  # predict looks into a folder, whatever its name
    places = [data / "Amanita" / name for name in refused + read]
    assert predict.main(Options(tuple(places), checkpoint=(run / "best.pt",), csv=tmp_path / "out.csv", quiet=True)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(places)  # one a photo, whatever its name
    assert [": error: " in line for line in lines] == [True] * len(refused) + [False] * len(read)


@pytest.mark.parametrize("name", bad_tables("p.jpg"))
def test_a_bad_table_is_refused_with_a_reason(tmp_path, name):
    (tmp_path / "p.jpg").write_bytes(encoded(scene(), "JPEG"))
    content, pattern = bad_tables("p.jpg")[name]
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){re.escape(str(tmp_path))}.*({pattern})") as refused:
        load_table(tmp_path / "t.csv")
    assert "\0" not in str(refused.value)


@pytest.mark.parametrize(("counts", "message"), [
    ({"a": 10}, "all photos are of one class, a"), ({"a": 1, "b": 1}, "no class has 5 photos"),
    ({chr(97 + i): 2 for i in range(9)}, "no class has 5 photos"), ({"a": 3, "b\n": 4}, r"class b\\n has control characters"),
    ({"a": 0, "b": 0}, "no class folder with photos in it")])
def test_too_few_photos_for_the_classes(tmp_path, counts, message):
    for place, (label, count) in enumerate(counts.items()):
        (tmp_path / label).mkdir()
        for i in range(count):
            (tmp_path / label / f"{i}.png").write_bytes(encoded(scene(60 + 20 * place + i, 50), "PNG"))
    with pytest.raises(DataError, match=message):
        split(find_trouble(load_table(tmp_path)), 0, 5, seed=0)


def test_hostile_checkpoints_are_refused_and_nothing_runs(run, tmp_path, monkeypatch):
    patterns = write_hostile_checkpoints(tmp_path / "hostile", run / "best.pt")
    monkeypatch.chdir(tmp_path / "hostile")
    before = sorted(os.listdir())
    for name, pattern in patterns.items():
        began, peak = time.monotonic(), torture.peak_memory()
        with pytest.raises(ValueError, match=pattern) as refused:
            Predictor(name)
        assert len(str(refused.value)) < 300, name
        assert time.monotonic() - began < 5, name
        assert torture.peak_memory() - peak < 500e6, name
    assert sorted(os.listdir()) == before
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "last.pt").write_bytes((run / "last.pt").read_bytes()[:5000])
    with pytest.raises(checkpoint.CheckpointError, match="broken"):
        main.train(dataclasses.replace(main.Config(), resume=tmp_path / "half"))
