"""The report on synthetic study folders."""

import importlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from report_page import Page
from synthetic_study import write_study

from rtrl_ext.study.load import read_study
from rtrl_ext.study.report import PAPER_BANNER, summary_text, write_report
from rtrl_ext.study.summary import _table
from rtrl_ext.study.tables import Cell, Row

FIGURES = {
    "arms_at_matched_loss", "gap_against_lambda1", "gap_by_level", "lambda1_along_training",
    "learning_curves",
}  # fmt: skip


def report(folder, out=None):
    """The report without pages of runs, which take time and have tests of their own."""
    return write_report(folder, out, pages=False)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "big"
    write_study(
        folder, seeds=20, arms=("rule", "bptt-rho"), sharpness={"eprop": 6.0, "modprop": 5.0},
        gap={"eprop": 0.08}, stop={"modprop": 0.5}, preset="quick",
        diverge=(("rule", "modprop", 3),), leave_out=(("bptt-rho", "eprop", 4),),
    )  # fmt: skip
    return folder, Page(report(folder))


def test_report_is_one_file_that_needs_no_network(big):
    _, page = big
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page.html)
    assert "@import" not in page.html and "<script" not in page.html
    assert all(image["alt"] and int(image["width"]) > 0 for image in page.images)


def test_matched_loss_comes_first_and_the_end_of_training_later(big):
    _, page = big
    order = [page.text.index(t) for t in ("1. At matched", "2. Claims", "3. At the end", "4. Conf")]
    assert order == sorted(order)
    assert "first falls to 0.6" in page.text  # modprop ends at 0.5


def test_files_are_written_beside_it(big):
    folder, page = big
    assert {p.stem for p in (folder / "figures").glob("*.png")} == FIGURES
    assert len(page.images) == len(FIGURES)
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF-"), ("svg", b"<?xml")):
        found = list((folder / "figures").glob(f"*.{kind}"))
        assert {p.stem for p in found} == FIGURES
        assert all(path.read_bytes().startswith(start) for path in found)
    assert not list(folder.rglob("*.tmp"))


def test_matched_table_has_the_runs_own_numbers(big):
    folder, page = big
    frame = pd.read_csv(folder / "runs.csv")
    own = frame[(frame["arm"] == "rule") & (frame["rule"] == "eprop")]
    row = page.row("e-prop", "shifted loss gap")
    mean, sd = own["gap_loss_at_0.6"].mean(), own["gap_loss_at_0.6"].std()
    assert row["loss gap"] == f"{mean:.3f} ± {sd:.3f}"
    assert row["runs"] == "20"
    assert row["λ₁, recurrent"].startswith(f"{own['lambda1_at_0.6'].mean():.0f}")


def test_diverged_and_missing_runs_are_counted_and_named(big):
    folder, page = big
    assert "99 of 100 runs recorded (98 finished, 1 diverged)" in page.text
    assert page.row("ModProp", "shifted loss gap")["arm and rule"] == "ModProp 1 diverged"
    assert "BPTT at ρ̄η of e-prop: seed 4" in page.text
    assert "ModProp, seed 3" in page.text
    frame = pd.read_csv(folder / "runs.csv")
    assert list(frame.columns[:4]) == ["arm", "rule", "seed", "status"]
    assert len(frame) == 100
    assert frame["status"].value_counts().to_dict() == {"finished": 98, "diverged": 1, "missing": 1}


def test_runs_csv_has_final_measures_and_matched_ones(big):
    frame = pd.read_csv(big[0] / "runs.csv").set_index("run_id")
    log = pd.read_csv(big[0] / "runs" / "bptt-rule-s0" / "log.csv")
    run = frame.loc["bptt-rule-s0"]
    last = log.iloc[-1]
    assert run["train_loss"] == pytest.approx(last["train_loss"])
    assert run["gap_loss"] == pytest.approx(last["test_loss"] - last["train_loss"])
    assert run["reached_at_0.3"] == "reached" and run["reached_at_0.1"] == "never"
    assert log["train_loss"].min() < 0.3 < log["train_loss"].iloc[0]
    before = log[log["train_loss"] > 0.3]["iteration"].max()
    assert before - 40 <= run["iteration_at_0.3"] <= before + 20
    assert frame.loc["modprop-rule-s0", "reached_at_0.3"] == "never"


def test_verdicts_with_twenty_seeds(big):
    _, page = big
    rows = [[" ".join(c.split()) for c in r] for r in page.rows]
    verdicts = {(r[0], r[1]): r[2] for r in rows if r and r[0].startswith(("C1", "C2", "C3"))}
    assert verdicts["C1 mean", "e-prop loss gap"].startswith("supported")
    assert verdicts["C3", "e-prop λ₁"].startswith("supported")
    assert not verdicts["C1 mean", "ModProp loss gap"].startswith("supported")
    assert len(verdicts) == 2 * 2 * 2 + 3 + 2


def test_configuration_and_versions_are_printed(big):
    _, page = big
    rows = [[" ".join(c.split()) for c in r] for r in page.rows]
    assert ["lr", "0.03"] in rows
    assert ["rules", "bptt, eprop, modprop"] in rows
    assert ["torch", "2.13.0"] in rows


def test_same_records_give_the_same_report(tmp_path):
    folder = write_study(tmp_path / "s", seeds=3)
    first = report(folder).read_bytes()
    drawn = {p.name: p.read_bytes() for p in (folder / "figures").iterdir()}
    again = report(folder, tmp_path / "elsewhere" / "report")
    assert again == tmp_path / "elsewhere" / "report" / "report.html"
    assert again.read_bytes() == first
    assert drawn == {p.name: p.read_bytes() for p in (again.parent / "figures").iterdir()}
    assert (again.parent / "runs.csv").exists()


@pytest.mark.usefixtures("no_figures")
def test_two_seeds_decide_nothing_and_the_report_says_so(tmp_path):
    page = Page(report(write_study(tmp_path / "s", seeds=2, sharpness={"eprop": 8.0})))
    assert "These runs decide none of the claims." in page.text
    assert page.text.count("undecided (n = 2)") >= 4
    assert " supported (" not in page.text


@pytest.mark.usefixtures("no_figures")
def test_paper_preset_carries_its_banner(tmp_path):
    paper = report(write_study(tmp_path / "p", preset="paper"))
    quick = report(write_study(tmp_path / "q", preset="quick"))
    assert PAPER_BANNER in Page(paper).text
    assert PAPER_BANNER not in Page(quick).text
    assert (
        "with κ=1 and a last-step loss, three-factor is one-step truncation" in PAPER_BANNER.lower()
    )


@pytest.mark.usefixtures("no_figures")
def test_corrupt_and_foreign_records_are_named_and_left_alone(tmp_path):
    folder = write_study(tmp_path / "s")
    runs = folder / "runs"
    texts = {
        "broken": '{"run_id": "broken", "arm"',
        "list": "[1, 2]",
        "empty": "",
        "foreign": json.dumps(
            json.loads((runs / "bptt-rule-s0" / "record.json").read_text())
            | {"run_id": "foreign", "rule": "uoro"}
        ),
        "copied": (runs / "bptt-rule-s0" / "record.json").read_text(),
        "odd": json.dumps({"run_id": "odd", "arm": "rule", "rule": 3}),
    }
    for name, text in texts.items():
        (runs / name).mkdir()
        (runs / name / "record.json").write_text(text)
    (runs / "eprop-rule-s1" / "record.json").write_bytes(b"\xff\xfe\x00")
    (runs / "eprop-rule-s0" / "log.csv").write_text("iteration,train_loss\n0,abc\n")
    (runs / "not-a-run.txt").write_text("x")
    page = Page(report(folder))
    study = read_study(folder)
    assert {Path(s.path).parent.name for s in study.skipped} == {
        *texts,
        "eprop-rule-s1",
        "eprop-rule-s0",
    }
    for item in study.skipped:
        assert item.path in page.text and item.path in summary_text(folder)
    for name, text in texts.items():
        assert (runs / name / "record.json").read_text() == text
    assert "5 of 6 runs recorded" in page.text


def test_a_study_without_records_has_a_report(tmp_path):
    folder = write_study(tmp_path / "s")
    for path in (folder / "runs").glob("*/record.json"):
        path.unlink()
    page = Page(report(folder))
    assert "0 of 6 runs recorded" in page.text
    assert "No run has a record yet" in page.text
    assert "0 of 6 runs recorded" in summary_text(folder)
    assert len(pd.read_csv(folder / "runs.csv")) == 6


@pytest.mark.usefixtures("no_figures")
def test_no_level_in_common_is_said(tmp_path):
    folder = write_study(tmp_path / "s", stop={"eprop": 1.5})
    page = Page(report(folder))
    assert "No level of the training loss is reached by 90 % of the runs of every rule" in page.text
    assert "No level of the training loss is reached" in summary_text(folder).replace("\n", " ")


def test_one_rule_and_no_bptt(tmp_path):
    alone = write_study(tmp_path / "a", rules=("bptt",), seeds=3)
    page = Page(report(alone))
    assert "the study has no BPTT or no other rule" in page.text
    without = write_study(tmp_path / "b", rules=("eprop",), seeds=3)
    assert "does not train by BPTT" in Page(report(without)).text


@pytest.mark.usefixtures("no_figures")
def test_names_are_escaped(tmp_path):
    folder = write_study(tmp_path / "s", rules=("bptt",))
    place = folder / "runs" / "<b>x"
    place.mkdir()
    (place / "record.json").write_text("{")
    html = report(folder).read_text()
    assert "<b>x" not in html and "&lt;b&gt;x" in html


def test_summary_has_the_matched_table_before_the_final_one(big):
    text = summary_text(big[0])
    lines = text.splitlines()
    assert text.index("first falls to 0.6") < text.index("At the end of training")
    assert any(
        re.match(r"\s+C3\s+(supported|not supported|undecided \(n = \d+\))", l) for l in lines
    )
    row = next(line for line in lines if line.startswith("  e-prop"))
    assert row.split()[1] == "20"


def test_columns_of_the_summary_stay_apart():
    cells = {k: Cell(1.98e6, 2.8e6, 2) for k in ("train_loss", "test_loss")}
    rows = [Row("rule", "bptt", "BPTT", 2, 0, 0, 0, 0, cells)]
    head, means, spread = _table(rows, ("train_loss", "test_loss"))
    assert spread.split() == ["±", "2.8e+06"] * 2
    assert means.split() == ["BPTT", "2", "1.98e+06", "1.98e+06"]
    assert [line.rindex(end) + len(end) for line, end in ((head, "loss"), (spread, "06"))] == [
        len(means)
    ] * 2


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"study\.json is missing"):
        report(tmp_path)
    folder = write_study(tmp_path / "s", rules=("bptt",))
    target = tmp_path / "file"
    target.write_text("x")
    with pytest.raises(ValueError, match=r"out: .* is a file"):
        report(folder, target)
    (folder / "study.json").write_text("{")
    with pytest.raises(ValueError, match="corrupt file"):
        report(folder)
    (folder / "study.json").write_text('{"rules": []}')
    with pytest.raises(ValueError, match="rules: got"):
        report(folder)
    (folder / "study.json").write_text('{"rules": ["bptt"], "arms": ["rule"], "seeds": ["a"]}')
    with pytest.raises(ValueError, match="seeds: got"):
        report(folder)
    assert target.read_text() == "x"


def test_missing_package_gives_the_pip_line(tmp_path, monkeypatch):
    folder = write_study(tmp_path / "s", rules=("bptt",))
    real = importlib.import_module

    def without(name):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=re.escape('pip install "rtrl_ext[study]"')):
        report(folder)
    assert not (folder / "report.html").exists()
