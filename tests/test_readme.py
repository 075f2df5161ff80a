"""Every command of the READMEs is one that its script takes, and runs, in small and in the order of the page."""

import functools
import inspect
import io
import re
import runpy
import shlex
import shutil
import sys

import docstring_parser
import pytest
import tyro
from conftest import ROOT, SMALL

import predict
from config import Config
from data import download, draw
from tools import app, compare, export, find_lr, look, publish, quantize, report, soup, suspects, torture, tune

SCRIPTS = {"main.py": Config, "predict.py": predict.Options, "data/draw.py": draw.draw_dataset, "data/download.py": download.download,
           "tools.app": app.Options, "tools.compare": compare.main, "tools.export": export.export, "tools.find_lr": find_lr.main,
           "tools.publish": publish.publish, "tools.quantize": quantize.quantize, "tools.report": report.main,
           "tools.soup": soup.main, "tools.suspects": suspects.main, "tools.tune": tune.main}


def commands(page: str) -> list[str]:
    """Of all fenced blocks and inline code: what begins with python or make, or has it behind a pipe; comments cut off."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    lines = [line.split("  #")[0].removeprefix("$ ") for block in fenced for line in block.splitlines()] + inline
    return [line.split("| ")[-1].strip() for line in lines if re.match(r"(ls .*\| )?(python|make) ", line)]


def takes(script: str, arguments: list[str]) -> None:
    """Parse as the script would; a function is not called."""
    what = SCRIPTS[script]
    if not isinstance(what, type):
        @functools.wraps(what)
        def what(*_, **__): ...
    tyro.cli(what, args=arguments, config=(tyro.conf.OmitArgPrefixes,))


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "data/README.md", "docs/COMMANDS.md"])
def test_all_commands_parse(page, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)  # --track asks whether its package is there
    found = commands(page)
    assert len(found) >= (2 if page.startswith("data") else 12)
    for command in found:
        program, *arguments = shlex.split(command)
        if program == "make":
            targets = [argument for argument in arguments if "=" not in argument]
            assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M) for target in targets), command
        elif arguments[:2] != ["-m", "venv"] and "--tyro-write-completion" not in arguments and "--help" not in arguments:
            script, arguments = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
            try:
                takes(script, arguments)
            except SystemExit as error:
                pytest.fail(f"{page}: {command}: exit code {error.code}")


TOOLS = [*filter(inspect.isfunction, SCRIPTS.values()), look.augmentations, look.predictions, torture.main]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__module__)
def test_each_flag_of_a_tool_says_in_its_help_what_it_is_for(tool):
    told = {param.arg_name for param in docstring_parser.parse(tool.__doc__).params if param.description}
    assert told == set(inspect.signature(tool).parameters) - {"config"}


def anchors(page: str) -> set[str]:
    """What a link may end with: GitHub makes one of each heading."""
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings} | {*re.findall(r'<a name="(.+?)">', page)}


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT) for folder in (".", "docs", "data", "benchmarks")
                                        for path in (ROOT / folder).glob("*.md")), ids=str)
def test_links_lead_to_a_file_and_a_heading_of_it(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_what_both_languages_promise_is_the_same():
    english, chinese = set(commands("README.md")), set(commands("README.zh.md"))
    assert chinese <= english | {"make demo"}


IN_SMALL = ["--model", SMALL, "--weights", "none", "--image-size", "64", "--epochs", "1", "--batch", "16", "--workers", "0"]
ADDED = {"main.py": IN_SMALL, "tools.find_lr": IN_SMALL, "tools.tune": IN_SMALL, "data/draw.py": ["--per-class", "5"]}
NOT_RUN = ("make", "python -m venv",      # CI's own work
           "python data/download.py",     # the network; test_data.py has a stand-in
           "python -m tools.app")         # waits for a browser; test_app.py asks it


def run_it(command: str) -> None:
    """In this process, as `python` would: __name__ is "__main__"."""
    _, *arguments = shlex.split(command.replace("--trials 20", "--trials 1").replace(" --push USER/NAME", ""))
    as_module = arguments[0] == "-m"
    script, *arguments = arguments[1:] if as_module else arguments
    as_it_is = {"--help", "--tyro-write-completion", "--resume"} & set(arguments)
    sys.argv = [script, *arguments, *([] if as_it_is else ADDED.get(script, []))]
    try:
        runpy.run_module(script, run_name="__main__") if as_module else runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{command}: {end.code}")


def test_all_commands_run(run, drawn, tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    shutil.copytree(drawn, here / "FOLDER")
    shutil.copytree(drawn, tmp_path / "shared" / "data" / "fungi9")
    for name in "ab":
        shutil.copytree(run, here / "runs" / name)
    shutil.copytree(run, here / "RUN")                    # of another folder than its record of experiments: stopped before its last line
    photos = sorted((here / "FOLDER").rglob("*.jpg"))
    shutil.copy(photos[0], here / "image.jpg")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", [])
    for command in dict.fromkeys(commands("README.md") + commands("README.zh.md")):
        if not command.startswith(NOT_RUN):
            monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos[0]}\n{photos[1]}\n"))
            run_it(command)
    printed = capsys.readouterr().out
    for file in ("answers.csv", "why.png", "rate.png", "completion.sh", "soup.pt", "runs/compare.html", "runs/a/best.int8.onnx",
                 "runs/all/oof.csv"):
        assert (here / file).stat().st_size, file
    assert '"label"' in printed
    assert "python predict.py PHOTO --checkpoint RUN/best.pt" in printed
