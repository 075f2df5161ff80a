import re
import socket

import cv2
import numpy as np
import pytest

import photos
from explain import ExplainError
from predict import Predictor
from tools import app as tools_app
from tools.app import MOST, QUEUE, WORDS, App


@pytest.fixture(scope="module")
def app(run):
    return App((run / "best.pt",))


def test_photos_of_one_find_are_averaged_and_a_bad_one_is_named(app, run, drawn, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"x")
    photos = [str(drawn / "Boletus" / f"boletus_000{i}.jpg") for i in (1, 2)]
    answer, words, pictures = app.answer([*photos, str(tmp_path / "bad.jpg")], "English")
    mean = Predictor(run / "best.pt").probs(photos)[0].mean(0)
    assert list(answer.values()) == pytest.approx(np.sort(mean)[::-1].tolist(), abs=1e-6)
    assert "bad.jpg: not a photo" in words
    assert "never eat" in words
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 4   # each photo and its heat map


def test_what_is_unsure_or_deadly_is_said_in_the_reader_s_language(app, drawn, monkeypatch):
    photo = [str(drawn / "Amanita" / "amanita_0001.jpg")]

    def asked(known: float):
        probs = np.full((1, 9), 0.1 / 8)
        probs[0, app.predictor.classes.index("Amanita")] = 0.9
        monkeypatch.setattr(app.predictor, "answers", lambda paths: (probs, np.array([known]), {}))
        return app.answer(photo, "中文")

    assert WORDS["中文"]["unknown"] in asked(app.predictor.limit - 0.01)[1]
    answer, words, _ = asked(app.predictor.limit + 0.01)
    assert WORDS["中文"]["unknown"] not in words
    assert next(iter(answer)) == "Amanita 鹅膏菌属"
    assert "95%的可能属于含有致命种类的属：Amanita 鹅膏菌属" in words  # and four other deadly genera share the rest


def test_the_likeliest_deadly_are_named_however_thin_they_are_spread(app, drawn, monkeypatch):
    probs = np.full((1, 9), 0.008)
    probs[0, app.predictor.classes.index("Suillus")] = 1 - 8 * 0.008
    monkeypatch.setattr(app.predictor, "answers", lambda paths: (probs, np.array([1.0]), {}))
    monkeypatch.setattr("trust.NOTICEABLE", 0.01)
    _, words, _ = app.answer([str(drawn / "Amanita" / "amanita_0001.jpg")], "English")
    line = next(line for line in words.split("\n") if "deadly" in line)
    assert len(re.findall(r"Amanita|Boletus|Cortinarius|Entoloma|Russula", line)) == 3


def test_what_is_poisonous_is_said_as_predict_py_says_it(app, drawn, monkeypatch):
    probs = np.zeros((1, 9))
    probs[0, app.predictor.classes.index("Agaricus")] = 1
    monkeypatch.setattr(app.predictor, "answers", lambda paths: (probs, np.array([1.0]), {}))
    asked = [app.answer([str(drawn / "Agaricus" / "agaricus_0001.jpg")], language)[1] for language in WORDS]
    assert "100% on genera with poisonous species: Agaricus, " in asked[0]
    assert "100%的可能属于含有有毒种类的属：Agaricus 蘑菇属, " in asked[1]


def test_a_model_without_heat_maps_answers_all_the_same(app, drawn, monkeypatch):
    def none(explainer, photo, k):
        raise ExplainError("tokens")

    monkeypatch.setattr("tools.app.Explainer.__call__", none)
    answer, _, pictures = app.answer([str(drawn / "Amanita" / "amanita_0001.jpg")], "English")
    assert len(answer) == 9
    assert pictures == []


def test_a_photo_too_large_to_be_read_whole_has_its_heat_map_and_a_vanished_one_its_answer(app, tmp_path, rng, monkeypatch):
    cv2.imwrite(str(tmp_path / "big.jpg"), rng.integers(0, 256, (600, 600, 3), np.uint8))
    monkeypatch.setattr(photos, "MAX_PIXELS", 200_000)
    answer, _, pictures = app.answer([str(tmp_path / "big.jpg")], "English")
    assert (len(answer), len(pictures)) == (9, 2)

    def gone(path, min_side):
        raise photos.PhotoError("gone")

    monkeypatch.setattr("tools.app.read_photo", gone)
    assert app.answer([str(tmp_path / "big.jpg")], "English") == (answer, _, [])


def test_only_so_many_questions_wait(app):
    pytest.importorskip("gradio")
    assert app.page()._queue.max_size == QUEUE


def test_a_port_that_is_taken_is_told(run):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ValueError, match="cannot be opened .* Give another --port"):
        tools_app.main(tools_app.Options((run / "best.pt",), port=other.getsockname()[1]))
    with pytest.raises(ValueError, match="cannot be opened at 127.0.0.1, port 99999: .* Give another --port"):
        tools_app.main(tools_app.Options((run / "best.pt",), port=99999))


def test_a_page_from_an_export_alone_has_no_heat_maps(run, drawn, monkeypatch, capsys):
    def alone(path):
        raise ExplainError("best.onnx: heat maps need best.pt, which is not beside it.")

    monkeypatch.setattr("tools.app.Explainer", alone)
    answer, _, pictures = App((run / "best.pt",)).answer([str(drawn / "Amanita" / "amanita_0001.jpg")], "English")
    assert "without heat maps: best.onnx: heat maps need best.pt" in capsys.readouterr().out
    assert len(answer) == 9
    assert pictures == []


def test_no_photo_and_too_many_are_told(app):
    assert app.answer(None, "English")[1] == WORDS["English"]["none"]
    assert app.answer(["x.jpg"] * (MOST + 1), "English")[1] == WORDS["English"]["many"]


def test_both_languages_say_the_same_things():
    assert set(WORDS["English"]) == set(WORDS["中文"])
