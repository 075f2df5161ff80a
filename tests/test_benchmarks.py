import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import cache, loader, views
from benchmarks.timing import Options, a_second, in_turn, row


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


def test_a_section_each_which_a_later_run_replaces(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "__main__.py"))
    results = tmp_path / "results.md"
    results.write_text("# measured elsewhere\n\n## step\n\nold row\n\n## Findings\n\nby hand\n")
    bench.main(["none_such"], ["--repeat", "1"])
    text = results.read_text()
    assert "none_such failed" in text
    assert "old row" not in text
    assert text.endswith("\n## Findings\n\nby hand\n")
    assert "Python 3" in text
    assert "none_such" in capfd.readouterr().err
    bench.main(["other"], [])
    bench.main(["none_such"], ["--repeat", "2"])
    text = results.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## none_such", "## other", "## Findings"]
    assert "--repeat 2" in text
    assert "--repeat 1" not in text
    assert text.endswith("\n## Findings\n\nby hand\n")


@pytest.mark.parametrize("name", bench.ROWS)
def test_each_row_has_its_script(name):
    assert (bench.Path(bench.__file__).parent / f"{name}.py").is_file()


@pytest.mark.parametrize(("benchmark", "rows"), [(loader, 12), (cache, 1), (views, 2)])
def test_they_run_in_small(benchmark, rows, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        found = list(benchmark.measure(Options(drawn, repeat=1, small=True)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == rows
    assert all(float(line.split("|")[2].split()[0]) > 0 for line in found)
