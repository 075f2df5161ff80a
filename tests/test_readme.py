"""Every command of the READMEs is one that its script takes. Parsed, not run: what they do is tested beside each module."""

import functools
import re
import shlex

import pytest
import tyro
from conftest import ROOT

import predict
from config import Config
from data import download, draw
from tools import app, compare, export, find_lr, publish, quantize, report, soup, suspects, tune

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


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "data/README.md"])
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


def test_what_both_languages_promise_is_the_same():
    english, chinese = set(commands("README.md")), set(commands("README.zh.md"))
    assert chinese <= english | {"make demo"}
