import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, save_random_model

import checkpoint
import predict
import trained
from answers import left_out
from checkpoint import CheckpointError
from files import WriteError
from photos import DataError
from predict import Options, Predictor
from text import as_program, sentence
from tools import export


@pytest.fixture
def photo(drawn):
    return drawn / "Amanita" / "amanita_0001.jpg"


def test_one_photo_prints_the_three_most_likely(run, photo, capsys):
    assert predict.main(Options((photo,), checkpoint=(run / "best.pt",))) == 0
    lines = capsys.readouterr().out.splitlines()
    shares = [float(line.split("%")[0]) for line in lines[:3]]
    assert shares == sorted(shares, reverse=True)
    assert "never eat" in lines[-1]
    warnings = [line for line in lines if "genera with deadly species" in line]
    answer, notes = Predictor(run / "best.pt")(photo), checkpoint.load(run / "best.pt")["notes"]
    deadly = sum(prob for name, prob in answer.items() if notes.get(name, {}).get("danger") == "deadly")
    assert 0.05 < deadly < 0.95  # an untrained answer spreads
    assert [line.split("%")[0] for line in warnings] == [f"{100 * deadly:.0f}"]


def test_a_notebook_gets_names_and_probabilities(run, photo):
    answer = Predictor(run / "best.pt")(photo)
    assert sum(answer.values()) == pytest.approx(1, abs=1e-5)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert len(answer) == 9
    with pytest.raises(ValueError, match=r"none.jpg: cannot be opened"):
        Predictor(run / "best.pt")("none.jpg")


def test_a_checkpoint_answers_with_batchnorm_folded_and_as_it_was_scored(run, monkeypatch):
    found, fold = [], trained.fold_batchnorm
    monkeypatch.setattr(trained, "fold_batchnorm", lambda model, image: found.append(fold(model, image)))
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        ours = Predictor(run / "best.pt").models[0].model.judge(images)
        plain = trained.load_model(run / "best.pt")[0].judge(images)
    torch.testing.assert_close(ours, plain)
    assert found == [13]


def test_a_folder_of_class_folders_is_scored_and_written(run, drawn, tmp_path, capsys):
    assert predict.main(Options((drawn,), checkpoint=(run / "best.pt",), csv=tmp_path / "out.csv")) == 0
    table = pd.read_csv(tmp_path / "out.csv")
    classes = checkpoint.load(run / "best.pt")["classes"]
    assert list(table.columns) == ["image", "label", "prob", "known", "unknown", "deadly", *classes]
    assert len(table) == 108
    assert np.allclose(table[classes].sum(axis=1), 1, atol=1e-4)
    assert (table.label == table[classes].idxmax(axis=1)).all()
    limit = checkpoint.load(run / "best.pt")["known_limits"][-1]
    assert ((table.known < limit) == (table.unknown == "yes")).all()
    assert table.known.between(0, 1).all()
    np.testing.assert_allclose(table.deadly, table[["Amanita", "Boletus", "Cortinarius", "Entoloma", "Russula"]].sum(axis=1), atol=1e-5)
    truth = table.image.str.split("/").str[-2]
    printed = capsys.readouterr().out
    assert printed.count(", unknown") == (table.unknown == "yes").sum()
    assert f"accuracy {(truth == table.label).mean():.4f}" in printed
    assert "macro-F1" in printed
    assert printed.endswith("not a fair score: the model learnt from these photos, or was chosen by them\n")


def test_photos_that_the_model_learnt_from_are_no_score(run, drawn, tmp_path, capsys):
    for path in drawn.glob("*/*_0001.jpg"):
        (tmp_path / path.parent.name).mkdir()
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes() + b"0")  # no photo that it met
    new = tmp_path / "Amanita", tmp_path / "Boletus"
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(["image,label", *(f"{next(place.glob('*.jpg'))},{place.name}" for place in new)]))
    predict.main(Options((table,), checkpoint=(run / "best.pt",)))
    printed = capsys.readouterr().out
    assert "not a fair score" not in printed
    assert "do not count" not in printed
    assert "a fair score?" not in printed
    with open(table, "a") as file:
        file.write(f"\n{next(drawn.glob('Russula/*.jpg'))},Russula\n")
    predict.main(Options((table,), checkpoint=(run / "best.pt",)))
    warning = "not a fair score: the model learnt from 1 of these photos, or was chosen by them\n"
    assert capsys.readouterr().out.endswith(warning)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / "best.pt", alone)  # a model without its run
    predict.main(Options((table,), checkpoint=(alone / "best.pt",)))
    assert capsys.readouterr().out.endswith(f"a fair score? {alone} holds no photos.csv, which says what the model learnt from\n")
    (alone / "photos.csv").write_bytes(b"\xef\xbb\xbf" + (run / "photos.csv").read_bytes())  # a spreadsheet's
    moved = shutil.copy(next(drawn.glob("Russula/*.jpg")), tmp_path / "Russula")
    table.write_text(table.read_text().replace(str(next(drawn.glob("Russula/*.jpg"))), str(moved)))
    predict.main(Options((table,), checkpoint=(alone / "best.pt",)))
    assert capsys.readouterr().out.endswith(warning)


@pytest.mark.parametrize("flag", ["csv", "explain"])
def test_what_is_asked_about_is_never_written_over(run, photo, tmp_path, flag):
    asked = Path(shutil.copy(photo, tmp_path)) if flag == "explain" else tmp_path / "photos.csv"
    if flag == "csv":
        asked.write_text(f"image,label\n{photo},Amanita\n")
    before = asked.read_bytes()
    with pytest.raises(WriteError, match="is one of the files that are read, and would be lost"):
        predict.main(Options((asked,), checkpoint=(run / "best.pt",), **{flag: asked}))
    assert asked.read_bytes() == before
    model = Path(shutil.copy(run / "best.pt", tmp_path))
    before = model.read_bytes()
    with pytest.raises(WriteError, match="best.pt: is one of the files that are read"):
        predict.main(Options((photo,), checkpoint=(tmp_path,), **{flag: model}))
    assert model.read_bytes() == before


def test_a_photo_that_a_csv_names_in_vain_is_an_error_row(run, photo, tmp_path, capsys):
    table = tmp_path / "photos.csv"
    table.write_text(f"image,label\ngone.jpg,Amanita\n{photo},Amanita\n")
    assert predict.main(Options((table,), checkpoint=(run / "best.pt",))) == 1
    gone, answered, *_ = capsys.readouterr().out.splitlines()
    assert gone.startswith(f"{tmp_path / 'gone.jpg'}: error: cannot be opened")
    assert answered.startswith(f"{photo}: ")


def test_photos_that_no_score_counts_are_told(run, drawn, tmp_path, capsys):
    rows = [f"{next(drawn.glob(f'{genus}/*.jpg'))},{label}" for genus, label in
            [("Amanita", "Amanita"), ("Boletus", "Boletus"), ("Russula", "russula"), ("Suillus", "Galerina"), ("Suillus", "")]]
    table, broken = tmp_path / "photos.csv", tmp_path / "broken.jpg"
    broken.write_bytes(b"x")
    table.write_text("\n".join(["image,label", *rows, f"{broken},Amanita"]))
    predict.main(Options((table,), checkpoint=(run / "best.pt",)))
    printed = capsys.readouterr().out
    assert "on 2 photos" in printed
    assert "3 of 5 photos do not count: of classes that the model does not know (Galerina, russula), or unreadable\n" in printed
    assert left_out(["a", "", "a"], [0], ["a"]) == "1 of 2 photos do not count: unreadable"
    table.write_text(f"image,label\n{next(drawn.glob('Amanita/*.jpg'))},amanita\n")
    predict.main(Options((table,), checkpoint=(run / "best.pt",)))
    assert "no score: 1 of 1 photos do not count: of classes that the model does not know (amanita), or" in capsys.readouterr().out


def test_a_photo_that_cannot_be_read_is_an_error_row_and_exit_code_1(run, photo, tmp_path, capsys):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.copy(photo, tmp_path / "deep" / "er" / "good.JPG")
    (tmp_path / "bad.jpg").write_bytes(b"x")
    assert predict.main(Options((tmp_path,), checkpoint=(run / "best.pt",), csv=tmp_path / "out.csv")) == 1
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.label[0].startswith("error: not a photo")
    assert table.loc[0, "prob":].isna().all()
    assert table.prob[1] > 0
    assert "bad.jpg: error: not a photo" in capsys.readouterr().out


def test_a_csv_of_photos_with_and_without_labels(run, drawn, tmp_path, capsys):
    rows = {"image": "drawn/{0}/{1}_0001.jpg", "image,label": "drawn/{0}/{1}_0001.jpg,{0}"}
    for header, row in rows.items():
        (drawn.parent / "t.csv").write_text("\n".join([header, *(row.format(g, g.lower()) for g in ("Amanita", "Boletus"))]))
        assert predict.main(Options((drawn.parent / "t.csv",), checkpoint=(run / "best.pt",))) == 0
        printed = capsys.readouterr().out
        assert sum(".jpg: " in line for line in printed.splitlines()) == 2
        assert ("accuracy" in printed) == (header != "image")


def test_photos_of_one_class_alone_are_scored(run, drawn, tmp_path, capsys):
    rows = [f"{photo},Amanita\n" for photo in sorted((drawn / "Amanita").iterdir())[:8]]
    (tmp_path / "photos.csv").write_text("".join(["image,label\n", *rows]))
    assert predict.main(Options((tmp_path / "photos.csv",), checkpoint=(run / "best.pt",))) == 0
    assert re.search(r"accuracy \d\.\d{4}, macro-F1 \d\.\d{4} on 8 photos", capsys.readouterr().out)


def test_its_own_answers_are_no_truth_to_be_scored_by(run, drawn, tmp_path, monkeypatch, capsys):
    photos = [drawn / name / f"{name.lower()}_0001.jpg" for name in ("Amanita", "Boletus")]
    assert predict.main(Options(tuple(photos), checkpoint=(run / "best.pt",), csv=tmp_path / "answers.csv")) == 0
    assert predict.main(Options((tmp_path / "answers.csv",), checkpoint=(run / "best.pt",))) == 0
    assert "accuracy" not in capsys.readouterr().out
    monkeypatch.chdir(drawn)  # paths are as they were given, wherever the answers lie
    assert predict.main(Options((Path("Amanita"),), checkpoint=(run / "best.pt",), csv=tmp_path / "answers.csv")) == 0
    assert predict.main(Options((tmp_path / "answers.csv",), checkpoint=(run / "best.pt",))) == 0


def test_a_photo_of_something_else_is_unknown_but_keeps_its_likeliest_class(run, photo, tmp_path, capsys):
    saved = checkpoint.load(run / "best.pt")
    checkpoint.save(tmp_path / "strict.pt", saved | {"known_limits": [1.0] * 16})
    assert predict.main(Options((photo,), checkpoint=(tmp_path / "strict.pt",), csv=tmp_path / "out.csv")) == 0
    row = pd.read_csv(tmp_path / "out.csv").iloc[0]
    assert row.unknown == "yes"
    assert row.label == next(iter(Predictor(run / "best.pt")(photo)))
    assert f"unknown: it looks like none of the classes (known {row.known:.2f}, below 1.00)" in capsys.readouterr().out


def test_several_checkpoints_and_views_are_averaged(run, photo, tmp_path):
    save_random_model(tmp_path / "other.pt", checkpoint.load(run / "best.pt")["classes"], {})
    models = run / "best.pt", tmp_path / "other.pt"
    both, _ = Predictor(*models, tta=4).probs([photo])
    each = [Predictor(model, tta=4).probs([photo])[0] for model in models]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)
    assert not np.allclose(each[0], each[1])
    assert not np.allclose(each[0], Predictor(run / "best.pt").probs([photo])[0])


def test_random_views_are_the_training_augmentations_and_repeat(run, photo):
    one, two = (Predictor(run / "best.pt", tta=8, tta_random=True).probs([photo])[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, Predictor(run / "best.pt", tta=8).probs([photo])[0])


def test_random_views_are_as_strong_as_the_run_s_own(run, photo, tmp_path):
    saved = checkpoint.load(run / "best.pt")
    for augment in (0.0, 0.5):
        checkpoint.save(tmp_path / f"{augment}.pt", saved | {"config": saved["config"] | {"augment": augment}})
    plain, usual = (Predictor(tmp_path / f"{augment}.pt", tta=8, tta_random=True).probs([photo])[0] for augment in (0.0, 0.5))
    np.testing.assert_array_equal(usual, Predictor(run / "best.pt", tta=8, tta_random=True).probs([photo])[0])
    assert not np.allclose(plain, usual)


def test_workers_change_nothing(run, drawn):
    paths = sorted(drawn.rglob("*.jpg"))[:20]
    one, two = (Predictor(run / "best.pt", batch=6, workers=w).probs(paths)[0] for w in (0, 2))
    np.testing.assert_array_equal(one, two)


def test_no_photos_get_no_answers(run):
    probs, errors = Predictor(run / "best.pt").probs([])
    assert (probs.shape, errors) == ((0, 9), {})


def test_a_folder_is_asked_without_what_is_hidden_in_it(run, photo, tmp_path):
    (tmp_path / "all" / ".thumbnails").mkdir(parents=True)
    for place in ("all", "all/.thumbnails"):
        shutil.copy(photo, tmp_path / place / "a.jpg")
    assert predict.find_photos([tmp_path / "all"])[0] == [str(tmp_path / "all" / "a.jpg")]


def test_linked_folders_are_asked_and_a_circle_of_links_is_left(photo, tmp_path):
    for name in ("all", "elsewhere"):
        (tmp_path / name).mkdir()
        shutil.copy(photo, tmp_path / name / "a.jpg")
    (tmp_path / "all" / "Amanita").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "all")
    paths = [tmp_path / "all" / "Amanita" / "a.jpg", tmp_path / "all" / "a.jpg"]
    assert predict.find_photos([tmp_path / "all"]) == ([*map(str, paths)], ["Amanita", ""])


def test_a_csv_that_is_a_link_stays_one_and_what_is_no_file_is_refused_at_once(run, photo, tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "far" / "answers.csv")
    assert predict.main(Options((photo,), checkpoint=(run / "best.pt",), csv=tmp_path / "link.csv")) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert len(pd.read_csv(tmp_path / "far" / "answers.csv")) == 1
    monkeypatch.setattr(predict, "Predictor", lambda *_, **__: pytest.fail("a model is opened"))
    with pytest.raises(WriteError, match="far: is no file that could be replaced"):
        predict.main(Options((photo,), checkpoint=(run / "best.pt",), csv=tmp_path / "far"))


def test_ctrl_c_is_no_error_on_the_screen():
    code = ("import runpy, signal, sys, photos; sys.argv[1:] = ['photos.csv']; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "photos.read_csv = lambda *_, **__: signal.raise_signal(signal.SIGINT); runpy.run_path('predict.py', run_name='__main__')")
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        as_program(interrupted)
    assert end.value.code == 130


@pytest.mark.parametrize(("script", "arguments"), [("predict.py", ["private/1.jpg"]), ("main.py", ["--data", "private"])])
def test_a_folder_that_one_may_not_open_is_one_sentence(script, arguments):
    """As pathlib tells it before Python 3.14; root, whom CI runs as, may open all."""
    code = ("import errno, pathlib, runpy, sys; look = pathlib.Path.is_dir\n"
            "def is_dir(path):\n"
            "    if 'private' in path.parts:\n"
            "        raise PermissionError(errno.EACCES, 'Permission denied', str(path))\n"
            "    return look(path)\n"
            f"pathlib.Path.is_dir = is_dir; sys.argv[1:] = {arguments}; sys.path.insert(0, ''); "
            f"runpy.run_path({script!r}, run_name='__main__')")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(r"private(/1.jpg)?: may not be opened by you \(Permission denied\)\. .+\n", ended.stderr)


def test_a_model_without_a_limit_says_that_it_calls_nothing_unknown(run, photo, tmp_path, capsys):
    checkpoint.save(tmp_path / "early.pt", checkpoint.load(run / "best.pt") | {"known_limits": [0.0] * 16})
    predict.main(Options((photo,), checkpoint=(run / "best.pt", tmp_path / "early.pt")))
    told = f"{tmp_path / 'early.pt'}: nothing is called unknown: that limit is fitted last, into best.pt, when training ends"
    assert capsys.readouterr().err.splitlines() == [told]


def test_a_pipe_that_lacks_the_letters_gets_their_numbers(run, photo, tmp_path):
    shutil.copy(photo, tmp_path / "蘑菇 🍄.jpg")
    pipe = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    for flags, said in (((), "\\u8611\\u83c7 \\U0001f344.jpg: "), (("--json",), "")):
        done = subprocess.run([sys.executable, ROOT / "predict.py", tmp_path, photo, "--checkpoint", run / "best.pt", *flags],
                              env=pipe, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    assert "蘑菇 🍄.jpg" in json.loads(done.stdout.splitlines()[0])["image"]


def test_a_reader_that_has_seen_enough_is_no_error_on_the_screen(run, drawn):
    for photos in (drawn, drawn / "Amanita"):  # more than a pipe's buffer, and less
        asked = subprocess.Popen([sys.executable, ROOT / "predict.py", photos, "--checkpoint", run / "best.pt", "--tta", "1"],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        asked.stdout.close()
        assert "BrokenPipe" not in asked.stderr.read()
        assert asked.wait() == 1


def test_few_views_are_answered_at_their_own_temperature_and_limit(run, photo, tmp_path):
    saved = {k: v for k, v in checkpoint.load(run / "best.pt").items() if k != "format"}
    checkpoint.save(tmp_path / "best.pt", saved | {
        "temperatures": [1.0, 1.0, 5.0, *[1.0] * 13], "known_limits": [0.1, 0.2, 0.3, *[0.4] * 13]})
    checkpoint.save(tmp_path / "warm.pt", saved | {"temperatures": [5.0] * 16})
    export.export(tmp_path)
    for file in ("best.pt", "best.onnx"):
        asked = Predictor(tmp_path / file, tta=3)
        assert asked(photo) == pytest.approx(Predictor(tmp_path / "warm.pt", tta=3)(photo), abs=1e-4)
        assert asked(photo) != pytest.approx(Predictor(run / "best.pt", tta=3)(photo), abs=1e-2)
        assert asked.limit == 0.3


def test_a_folder_of_folds_answers_with_all_of_them(run, photo, tmp_path):
    saved = {k: v for k, v in checkpoint.load(run / "best.pt").items() if k != "format"}
    for fold, temperature in enumerate((0.5, 2.0)):
        (tmp_path / f"fold{fold}").mkdir()
        checkpoint.save(tmp_path / f"fold{fold}/best.pt", saved | {"temperatures": [temperature] * 16})
    each = [Predictor(tmp_path / f"fold{fold}/best.pt")(photo) for fold in range(2)]
    with pytest.raises(ValueError, match="not all of its folds are trained. Go on by the command that began it, or pass one: .*fold0"):
        Predictor(tmp_path)
    (tmp_path / "oof.csv").touch()
    together = Predictor(tmp_path)(photo)
    assert together == pytest.approx({name: (each[0][name] + each[1][name]) / 2 for name in together}, abs=1e-6)
    assert Predictor(run)(photo) == Predictor(run / "best.pt")(photo)
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="void: holds no best.pt, nor a fold with one"):
        Predictor(tmp_path / "void")


def test_without_a_checkpoint_the_newest_run_answers_and_is_named(run, photo):
    done = subprocess.run([sys.executable, ROOT / "predict.py", photo], cwd=run.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(run.relative_to(run.parents[1]) if run.is_absolute() else run) in done.stderr
    assert len([line for line in done.stdout.splitlines() if "%  " in line]) == 3


def test_errors_name_the_thing_and_the_remedy(run, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = checkpoint.load(run / "best.pt")
    checkpoint.save(tmp_path / "other.pt", {k: v for k, v in saved.items() if k != "format"} | {"classes": list("abcdefghi"), "notes": {}})
    (tmp_path / "void").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    best = run / "best.pt"
    for options, message in [(Options((photo,), checkpoint=(tmp_path / "none.pt",)), "none.pt: no such checkpoint"),
                             (Options((photo,)), "no trained model"),
                             (Options((photo,), checkpoint=(best, tmp_path / "other.pt")), "knows other classes"),
                             (Options((photo,), checkpoint=(best,), tta=99), "there are 1 to 16 views"),
                             (Options((), checkpoint=(best,)), "no photo given"),
                             (Options((tmp_path / "void",), checkpoint=(best,)), "no photo in it"),
                             (Options((tmp_path / "none.csv",), checkpoint=(best,)), "none.csv: cannot be opened"),
                             (Options((tmp_path / "pipe.csv",), checkpoint=(best,)), r"pipe.csv: cannot be opened \(not a file\)")]:
        with pytest.raises(ValueError, match=message):
            predict.main(options)


def test_paths_come_by_a_pipe_and_answers_leave_as_json_lines(run, photo, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"x")
    done = subprocess.run([sys.executable, ROOT / "predict.py", "-", "--json", "--quiet", "--checkpoint", run / "best.pt"], cwd=tmp_path,
                          input=f"{photo}\n\nbad.jpg\n", capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    good, bad = map(json.loads, done.stdout.splitlines())
    assert list(good) == ["image", "label", "prob", "known", "unknown", "deadly", "probs"]
    deadly = ("Amanita", "Boletus", "Cortinarius", "Entoloma", "Russula")
    assert good["deadly"] == pytest.approx(sum(good["probs"][name] for name in deadly), abs=1e-5)
    assert good["image"] == str(photo)
    assert good["probs"] == pytest.approx(Predictor(run / "best.pt")(photo), abs=1e-6)
    assert (good["label"], good["prob"]) == next(iter(good["probs"].items()))
    assert bad == {"image": "bad.jpg", "error": "not a photo, or of a kind that is not supported"}
    assert "\x1b" not in done.stdout + done.stderr  # no colours where no person watches
    assert done.stderr == ""


def test_quiet_prints_the_answers_alone(run, photo, drawn, capsys):
    predict.main(Options((photo,), checkpoint=(run / "best.pt",), quiet=True))
    *answers, danger = capsys.readouterr().out.splitlines()
    assert [line[5] for line in answers] == ["%"] * 3
    assert "deadly" in danger  # that is part of an answer
    predict.main(Options((drawn,), checkpoint=(run / "best.pt",), quiet=True))
    assert len(capsys.readouterr().out.splitlines()) == 108


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("a.jpg", "--checkpoint", "none.pt"), 1, "none.pt: no such checkpoint"),
    (("a.jpg", "--checkpoint", "\x1b[2J.pt"), 1, "\\x1b[2J.pt: no such checkpoint"), (("a.jpg", "--chekpoint", "x"), 2, "--checkpoint")])
def test_errors_are_one_sentence_on_the_screen(tmp_path, arguments, code, message):
    done = subprocess.run([sys.executable, ROOT / "predict.py", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_an_error_keeps_its_lines_and_an_end():
    assert sentence(ValueError("a\n\x1b[2J蘑菇")) == "a\n\\x1b[2J蘑菇"
    assert len(sentence(ValueError("\x1b" * 9000))) == 2000


def test_no_checkpoint_and_changed_weights_are_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint given"):
        Predictor()
    saved = {k: v for k, v in checkpoint.load(run / "best.pt").items() if k != "format"}
    saved["weights"]["head.weight"] = saved["weights"]["head.weight"][:, :3]
    checkpoint.save(tmp_path / "cut.pt", saved)
    with pytest.raises(CheckpointError, match="do not fit"):
        Predictor(tmp_path / "cut.pt")


def test_memory_that_runs_out_is_a_sentence(run, drawn, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("trained.engine.predict", short)
    with pytest.raises(ValueError, match="memory ran out on cpu, even for one view of a photo. Close what else uses it"):
        Predictor(run / "best.pt").probs([next(drawn.glob("*/*.jpg"))])


@pytest.mark.parametrize("flag", ["csv", "explain"])
def test_a_folder_that_is_missing_is_told_before_any_photo_is_asked(run, photo, tmp_path, monkeypatch, flag):
    monkeypatch.setattr(predict, "Predictor", None)
    with pytest.raises(WriteError, match=f"there is no folder {tmp_path / 'none'}. Make it first"):
        predict.main(Options((photo,), checkpoint=(run / "best.pt",), **{flag: tmp_path / "none" / "a.png"}))


def test_a_table_to_ask_may_have_any_columns_beside_its_own(photo, tmp_path):
    (tmp_path / "t.csv").write_text(f"image,side\n{photo},gills\n")
    assert predict.find_photos([tmp_path / "t.csv"]) == ([str(photo)], [""])


def test_an_address_and_an_odd_picture_are_refused_before_a_model_is_opened(run, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "Predictor", lambda *_, **__: pytest.fail("a model is opened"))
    with pytest.raises(DataError, match="https:/example.org/a.jpg: an address, not a file. Fetch the photo first"):
        predict.main(Options((Path("https://example.org/a.jpg"),), checkpoint=(run / "best.pt",)))
    with pytest.raises(WriteError, match="why.xyz: no kind of picture. Let it end in .png, .jpg, .pdf, .svg."):
        predict.main(Options((photo,), checkpoint=(run / "best.pt",), explain=tmp_path / "why.xyz"))


def test_the_newest_model_is_named_as_it_would_be_given(run, photo, tmp_path, monkeypatch, capsys):
    for fold in range(2):
        (tmp_path / "runs" / "all" / f"fold{fold}").mkdir(parents=True)
        shutil.copy(run / "best.pt", tmp_path / "runs" / "all" / f"fold{fold}")
    (tmp_path / "runs" / "all" / "oof.csv").touch()
    monkeypatch.chdir(tmp_path)
    predict.main(Options((photo,)))
    assert capsys.readouterr().err.startswith(f"model: {Path('runs/all')}\n")
