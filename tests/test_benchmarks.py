import subprocess
import sys

import pandas as pd
import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import cache, gpu, loader, recipes, views
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


def test_a_section_each_which_a_later_run_replaces_and_a_failed_one_leaves(tmp_path, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, "benchmarks.views" in command, f"{command[-1]} rounds\n| row of {command[2]} |\n")

    monkeypatch.setattr(bench, "__file__", str(tmp_path / "__main__.py"))
    monkeypatch.setattr(bench.subprocess, "run", run)
    results = tmp_path / "results.md"
    results.write_text("# measured elsewhere\n\n## step\n\nold row\n\n## Findings\n\nby hand\n")
    bench.main(bench.Chosen(("sam",), tmp_path, 1))
    text = results.read_text()
    assert "old row" not in text
    assert "Python 3" in text
    assert f"`python -m benchmarks.sam --data {tmp_path} --repeat 1`" in text
    assert text.endswith("| row of benchmarks.sam |\n\n## Findings\n\nby hand\n")
    with pytest.raises(SystemExit, match="views failed"):
        bench.main(bench.Chosen(("cache", "views", "step")))
    bench.main(bench.Chosen(("sam",), repeat=2))
    text = results.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## sam", "## cache", "## Findings"]
    assert "--repeat 2" in text
    assert "--repeat 1" not in text
    assert text.endswith("\n## Findings\n\nby hand\n")


@pytest.mark.parametrize("wrong", ["--help", "stp", "--small"])
def test_a_wrong_word_measures_nothing(wrong):
    results = bench.Path(bench.__file__).with_name("results.md")
    before = results.stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-m", "benchmarks", wrong], cwd=results.parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if wrong == "--help" else 2)
    assert results.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", bench.ROWS)
def test_each_row_has_its_script(name):
    assert (bench.Path(bench.__file__).parent / f"{name}.py").is_file()


@pytest.mark.parametrize(("benchmark", "rows"), [(loader, 12), (cache, 1), (views, 2), (gpu, 12)])
def test_they_run_in_small(benchmark, rows, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        found = list(benchmark.measure(Options(drawn, repeat=1, small=True)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == rows
    assert all(float(line.split("|")[2].split()[0]) > 0 for line in found)


def test_ways_beside_the_defaults_by_hand():
    # accuracy 0.75 and 0.5 in the folds; of class a 2 of 3 are right, of b half; against the defaults -1, 0, 0, 0 and so on
    own = pd.DataFrame({"label": list("aaabbb"), "fold": [0, 0, 0, 0, 1, 1], "right": [1.0, 1, 0, 1, 0, 1], "loss": 1.0, "seconds": 5.0})
    base = own.assign(right=1.0, loss=[0.5, 1.5, 1, 1, 1, 1])
    assert recipes.line("x", own, base) == "| x | 0.625 ± 0.177 | 1.000 ± 0.000 | 0.667 | -0.333 ± 0.192 | +0.000 ± 0.118 | 5 |"


def test_momentum_sam_climbs_against_the_momentum():
    # f(w) = w^2 / 2 at w = 2, buffer 2 after a plain step of 0.1 to 1.8: gradient at 1.8 - 0.5 = 1.3; buffer 0.9 * 2 + 1.3 = 3.1
    w = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = recipes.MomentumSAM(torch.optim.SGD([w], 0.1, momentum=0.9), rho=0.5, start=1)
    for _ in range(2):
        assert not optimizer.due()
        (w**2 / 2).backward()
        optimizer.step(w.grad.norm())
    assert w.item() == pytest.approx(1.8 - 0.31)


def test_norm_sam_leaves_matrices_where_they_are():
    layer = torch.nn.Linear(2, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = recipes.NormSAM(torch.optim.SGD(layer.parameters(), 0.1), rho=0.5)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.ascend()
    assert torch.equal(layer.weight, weight)
    assert (layer.bias - bias).norm().item() == pytest.approx(0.5)


def test_a_head_is_fitted_once_for_photos_backbone_and_kind(tmp_path, monkeypatch):
    fitted = []

    def fit(model, parts, balance, accelerator, tick):
        fitted.append(balance)
        model.head.weight.data.fill_(len(fitted))
        model.head.bias.data.zero_()

    monkeypatch.setattr(recipes, "FIT", fit)
    for stem, balance, weight in (("lite1", "none", 1), ("lite1", "none", 1), ("lite1", "logits", 2), ("lite2", "none", 3)):
        model = torch.nn.Module()
        model.head = torch.nn.Linear(3, 2)
        recipes.head_kept(str(tmp_path / stem))(model, [(None, torch.tensor([0, 0, 0, 1]))], balance, None, None)
        assert model.head.weight.unique().tolist() == [weight]
    assert fitted == ["none", "logits", "none"]


def test_recipes_run_in_small_and_go_on(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(recipes.Path(recipes.__file__).parents[1]))
    options = recipes.Options(drawn, tmp_path / "out", photos=60, folds=1, size=32, epochs=1, jobs=2, only=("plain SGD",))
    first = list(recipes.measure(options))
    assert [row.split(" | ")[0] for row in first[1:]] == ["| the defaults", "| plain SGD"]
    assert "| +0.000 ± 0.000 | +0.000 ± 0.000 |" in first[1]
    answered = options.folder("plain SGD", 0) / "val.csv"
    before = answered.stat().st_mtime_ns
    assert list(recipes.measure(options)) == first
    assert answered.stat().st_mtime_ns == before
