import numpy as np
import pytest

import metrics
import trust


def test_the_temperature_undoes_a_known_overconfidence(rng):
    honest = rng.dirichlet(np.ones(4), 4000)
    labels = (honest.cumsum(1) > rng.random((4000, 1))).argmax(1)                  # drawn as the probabilities say
    boastful = trust.at_temperature(honest, 0.4)
    temperature = trust.fit_temperature(boastful, labels)
    assert temperature == pytest.approx(1 / 0.4, rel=0.05)
    cooled = trust.at_temperature(boastful, temperature)
    np.testing.assert_allclose(cooled, honest, atol=0.02)
    assert metrics.calibration_error(cooled, labels) < 0.03 < metrics.calibration_error(boastful, labels)
    assert (cooled.argmax(1) == boastful.argmax(1)).all()                          # no answer changes


def test_a_certain_error_does_not_break_the_temperature():
    with np.errstate(divide="raise", invalid="raise"):
        assert 1 < trust.fit_temperature(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 1, 1])) <= 10


def test_a_temperature_by_hand():
    assert trust.at_temperature(np.array([0.9, 0.1]), 0.5) == pytest.approx([0.81 / 0.82, 0.01 / 0.82])
    assert trust.fit_temperature(np.array([[0.9, 0.1]] * 2000), np.arange(2000) % 2) > 5  # a photo of each class: the flatter the better


def test_a_few_lucky_photos_do_not_make_it_boast():
    # of three photos called 0.8 sure all are right: without the prior T would end at its limit, 0.1
    probs = np.array([[0.8, 0.2]] * 3)
    few, many = (trust.fit_temperature(np.repeat(probs, n, 0), np.zeros(3 * n, int)) for n in (1, 1000))
    assert 0.5 < few < 1
    assert many < 0.2


def test_the_limit_keeps_19_of_20():
    known = np.linspace(0, 1, 1000)
    assert (known >= trust.known_limit(known)).mean() == pytest.approx(0.95, abs=0.001)


def test_notes_go_by_any_name_in_any_case():
    notes = trust.read_notes(["amanita", "GALERINA", "鹅膏菌属", "Suillus", "Fomes", "cat", ""])
    assert {name: note["danger"] for name, note in notes.items()} == {
        "amanita": "deadly", "GALERINA": "deadly", "鹅膏菌属": "deadly", "Suillus": "poisonous"}
    assert "A. phalloides" in notes["amanita"]["note"]


def test_a_species_has_the_note_of_its_genus():
    deadly = ["Amanita phalloides", "amanita_muscaria", "Galerina-marginata", "01 Amanita", "cortinarius sp.", "鹅膏菌", "毒蝇鹅膏菌"]
    notes = trust.read_notes([*deadly, "Amanitopsis", "a b", "_", "菌", "属", ""])
    assert [*notes] == deadly
    assert notes["毒蝇鹅膏菌"] == notes["Amanita phalloides"]
    assert all(note["danger"] == "deadly" for note in notes.values())


def test_a_class_of_two_genera_has_the_note_of_the_worse():
    notes = trust.read_notes(["Agaricus or Amanita", "Amanita/Agaricus", "Lactarius_Galerina", "乳牛肝菌"])
    assert [note["danger"] for note in notes.values()] == ["deadly", "deadly", "deadly", "poisonous"]
    assert notes["乳牛肝菌"] == trust.read_notes(["Suillus"])["Suillus"]


def test_the_warning_adds_up_the_deadly_and_names_the_likeliest():
    classes = ["Agaricus", "Amanita", "Galerina", "Fomes"]
    notes = {name: {"danger": danger, "note": note} for name, danger, note in [
        ("Agaricus", "poisonous", "stomach"), ("Amanita", "deadly", "death cap"), ("Galerina", "deadly", "funeral bell")]}

    def line(*probs):
        return trust.warning(np.array(probs), classes, notes)

    assert line(0.7, 0.1, 0.2, 0.0) == "30% on genera with deadly species. Galerina: funeral bell."
    assert line(0.9, 0.04, 0.02, 0.04) == "6% on genera with deadly species. Amanita: death cap."  # neither alone is noticeable
    assert line(0.96, 0.02, 0.02, 0.0) == "96% on genera with poisonous species. Agaricus: stomach."
    assert line(0.02, 0.02, 0.02, 0.94) == ""


def test_the_list_of_genera_calls_nothing_harmless_and_names_its_sources():
    import csv
    with trust.GENERA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["genus"] for row in rows}) == len(rows)
    assert {row["danger"] for row in rows} == {"deadly", "poisonous", ""}
    for row in rows:
        assert bool(row["note"]) == bool(row["source"]) == bool(row["danger"])
        assert not {"safe", "harmless", "edible"} & set(row["note"].lower().replace(",", " ").split())
    classic = {"Agaricus", "Amanita", "Boletus", "Cortinarius", "Entoloma", "Hygrocybe", "Lactarius", "Russula", "Suillus"}
    assert classic | {"Galerina", "Lepiota", "Gyromitra"} <= {row["genus"] for row in rows}
