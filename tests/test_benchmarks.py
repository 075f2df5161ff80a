import pytest

from benchmarks import __main__ as bench
from benchmarks.timing import a_second, in_turn, row


def test_a_row_by_hand():
    # rounds 3/2, 8/2, 5/2: the median is 2.5, not the ratio of the means (2.67)
    assert row("x", [3, 8, 5], [2, 2, 2], ">= 2.5", "y") == "| x | 2.5 (1.5 to 4) | >= 2.5 | yes | y |"
    assert "| no |" in row("x", [3, 8, 5], [2, 2, 2], "<= 2.4")
    assert a_second(30, [1, 3, 100]) == "10 photos/s"


def test_ways_are_timed_in_turn_and_the_first_round_does_not_count():
    calls = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeat=3)
    assert calls == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_results_keep_what_a_person_wrote_below_and_name_what_failed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "__main__.py"))
    (tmp_path / "results.md").write_text("yesterday\n## Findings\nby hand\n")
    bench.main(["none_such"], ["--repeat", "1"])
    text = (tmp_path / "results.md").read_text()
    assert "none_such failed" in text
    assert "yesterday" not in text
    assert text.endswith("## Findings\nby hand\n")
    assert "Python 3" in text
    assert "none_such" in capfd.readouterr().err


@pytest.mark.parametrize("name", bench.ROWS)
def test_each_row_has_its_script(name):
    assert (bench.Path(bench.__file__).parent / f"{name}.py").is_file()
