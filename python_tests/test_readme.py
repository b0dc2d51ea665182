"""README and documentation: Python blocks run, commands exist, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from rtrl_ext import rules
from rtrl_ext.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: pages whose blocks go on from each other; elsewhere every block stands alone
CONNECTED = ("README.md",)


def text(path):
    return path.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.M | re.S)


def programs():
    for page in PAGES:
        found = blocks(page, "python")
        if page.name in CONNECTED:
            found = ["\n".join(found)]
        for i, code in enumerate(found):
            yield pytest.param(code, id=f"{page.name}-{i}")


@pytest.mark.parametrize("code", list(programs()))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "block", "exec"), {"__name__": "block"})


def test_blocks_are_found():
    assert len(blocks(ROOT / "README.md", "python")) >= 3
    assert len(blocks(ROOT / "docs" / "functional.md", "python")) >= 7


def commands(name):
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == [name]:
                    yield pytest.param(words[1:], id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("words", list(commands("rtrl-ext")))
def test_commands_are_those_of_the_command_line(words):
    _, unknown = build_parser().parse_known_args(words)
    assert not unknown or words[0] == "bench"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.M))
    named = {t for page in PAGES for t in re.findall(r"[`\n]make ([a-z-]+)", text(page))}
    assert {"demo", "test"} <= named <= targets


def links():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(page)):
            if "://" not in target:
                yield pytest.param(page.parent / target, id=f"{page.name}: {target}")


@pytest.mark.parametrize("path", list(links()))
def test_links_lead_somewhere(path):
    assert path.exists()


def test_readme_lists_the_rules():
    """The table in the README is `rules.table()`."""
    row = r"^\| (`.*?) \| `(\w+)\(.*?\)` \| (.*?) \| (.*?) \|$"
    rows = re.findall(row, text(ROOT / "README.md"), re.M)
    shown = {
        names[0]: (names[1:], cost, source.replace("–", ""))
        for names, cost, source in ((re.findall(r"`(.*?)`", n), c, s) for n, _, c, s in rows)
    }
    assert shown == {r["name"]: (r["aliases"], r["cost"], r["source"]) for r in rules.table()}
    assert all(hasattr(rules, cls) for _, cls, _, _ in rows)


def test_rules_page_has_every_rule():
    page = text(ROOT / "docs" / "rules.md")
    for cls in (c for c in rules.__all__ if isinstance(getattr(rules, c), type) and c != "Rule"):
        assert f"{cls}(" in page, cls


def test_study_page_names_every_measure():
    from rtrl_ext.study.records import COLUMNS
    from rtrl_ext.study.training import FINAL

    page = text(ROOT / "docs" / "study.md")
    for name in {*COLUMNS, *FINAL}:
        assert f"`{name}`" in page, name
