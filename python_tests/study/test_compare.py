"""Several studies side by side."""

import re

import pandas as pd
import pytest
from synthetic_study import write_study

from rtrl_ext import cli
from rtrl_ext.study.compare import write_comparison

pytestmark = pytest.mark.usefixtures("no_figures_in_module")


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    write_study(root / "digits", rules=("bptt", "eprop"), seeds=4, sharpness={"eprop": 6.0})
    write_study(
        root / "spikes", rules=("bptt", "eprop", "mdgl"), seeds=3, task="evidence",
        without=("lambda1",), stop={"mdgl": 0.5},
    )  # fmt: skip
    write_study(root / "alone", rules=("eprop",), seeds=3, task="pattern", without=("acc",))
    return root


@pytest.fixture(scope="module")
def out(studies):
    before = {p: p.read_bytes() for p in studies.rglob("*") if p.is_file()}
    told = []
    names = ("digits", "spikes", "alone")
    path = write_comparison(
        [studies / n for n in names], studies / "out" / "c", pages=False,
        shown=lambda k, total, name: told.append((k, total, name)),
    )  # fmt: skip
    assert path == studies / "out" / "c" / "report.html"
    assert told == [(k, 3, name) for k, name in enumerate(names)]
    assert all(p.read_bytes() == content for p, content in before.items())
    assert not list((studies / "digits").glob("*.html"))
    return path.parent


def test_every_study_has_its_report_and_a_link(out):
    html = (out / "report.html").read_text()
    links = set(re.findall(r'href="([^"]*)"', html))
    assert links == {f"studies/{name}/report.html" for name in ("digits", "spikes", "alone")}
    assert all((out / link).is_file() for link in links)
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    assert {p.name for p in (out / "figures").iterdir()} == {
        "forest.png", "forest.pdf", "forest.svg"
    }  # fmt: skip


def test_csv_has_every_test_of_every_study(out):
    table = pd.read_csv(out / "comparison.csv")
    for name in ("digits", "spikes", "alone"):
        own = pd.read_csv(out / "studies" / name / "claims.csv")
        part = table[table["study"] == name].drop(columns=["study", "task", "level"])
        pd.testing.assert_frame_equal(
            part.reset_index(drop=True), own, check_dtype=False
        )  # fmt: skip
    levels = table.groupby("study")["level"].first()
    assert levels.to_dict() == {"digits": 0.3, "spikes": 0.6, "alone": 0.3}
    whole = table[table["subject"] == "overall"]
    assert len(whole) == 18 and set(whole["claim"]) >= {"C1 mean", "C4", "C5"}


def test_what_cannot_be_compared_is_said(out):
    html = (out / "report.html").read_text()
    text = " ".join(re.sub("<[^>]*>", " ", re.sub(r"base64,[^\"]*", "", html)).split())
    for part in (
        "alone doesn&#39;t train by BPTT", "spikes has no λ₁: sharpness",
        "Losses of different tasks are in different units",
        "different levels of training loss: digits at 0.3, spikes at 0.6, alone at 0.3",
        "BPTT, MDGL of spikes isn&#39;t in every study",
    ):  # fmt: skip
        assert part in text, part
    assert "Versions of" not in text


def test_settings_and_versions_that_differ_are_named(studies, tmp_path):
    folder = write_study(tmp_path / "digits", rules=("bptt", "eprop"), seeds=3)
    path = folder / "study.json"
    path.write_text(path.read_text().replace('"lr": 0.03', '"lr": 0.1'))
    for record in folder.glob("runs/*/record.json"):
        record.write_text(record.read_text().replace("2.13.0", "2.14.0"))
    out = write_comparison([studies / "digits", folder], tmp_path / "out", pages=False)
    html = out.read_text()
    parents = [f"{p.parent.name}-digits" for p in (studies / "digits", folder)]
    assert {p.name for p in (tmp_path / "out" / "studies").iterdir()} == set(parents)
    assert f"Studies of seqmnist differ in lr: 0.03 in {parents[0]}, 0.1 in {parents[1]}." in html
    assert f"Versions of torch differ: 2.13.0 in {parents[0]}, 2.14.0 in {parents[1]}." in html


def test_the_command(studies, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [str(studies / name) for name in ("digits", "alone")]
    assert cli.main(["study", "report", *folders, "--no-run-pages"]) == 0
    assert (tmp_path / "study-comparison" / "report.html").is_file()
    shown = capsys.readouterr().out
    assert shown == f"comparison of 2 studies: {tmp_path / 'study-comparison' / 'report.html'}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["digits", "digits"], 2, "is named twice"),
        (["digits", "nothing"], 1, "holds no study"),
        (["digits", "alone", "--out", "digits"], 1, "is one of the studies"),
        (["digits", "alone", "--out", "digits/study.json"], 1, "is a file, expected a folder"),
    ],
)
def test_wrong_use(studies, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(studies)
    before = sorted(studies.rglob("*"))
    assert cli.main(["study", "report", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(studies.rglob("*")) == before
