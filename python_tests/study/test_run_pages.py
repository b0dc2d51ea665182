"""A page per run."""

import os
import re

import pytest
from synthetic_study import write_study

from rtrl_ext.study.report import write_report

pytestmark = pytest.mark.usefixtures("no_figures_in_module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pages") / "s"
    write_study(place, rules=("bptt", "eprop"), seeds=2, diverge=(("rule", "eprop", 1),))
    (place / "runs" / "bptt-rule-s0" / "density.csv").write_text(
        "eigenvalue,density\n-1,0.1\n0,2\n5,0.01\n"
    )
    (place / "runs" / "bptt-rule-s1" / "density.csv").write_text("eigenvalue,density\nx,y\n")
    told = []
    write_report(place, shown=lambda done, total: told.append((done, total)))
    assert told == [(k, 4) for k in (1, 2, 3, 4)]
    return place


def pages(folder):
    return sorted((folder / "runs").glob("*.html"))


def test_every_run_has_a_page_that_the_report_links(folder):
    assert [p.stem for p in pages(folder)] == [
        "bptt-rule-s0", "bptt-rule-s1", "eprop-rule-s0", "eprop-rule-s1"
    ]  # fmt: skip
    html = (folder / "report.html").read_text()
    links = re.findall(r'href="([^"]*)"', html)
    assert len(links) == 4 and all((folder / link).is_file() for link in links)
    assert "(diverged)" in html


def test_a_page_is_offline_and_has_curves_measures_and_configuration(folder):
    for page in pages(folder):
        html = page.read_text()
        sources = re.findall(r'(?:src|href)="([^"]*)"', html)
        assert {s[:22] for s in sources} == {"../report.html#runs", "data:image/png;base64,"}
        assert "<script" not in html and "@import" not in html
        assert ">lr<" in html and ">torch<" in html
        assert ("diverged, 30 rows" in html) == (page.stem == "eprop-rule-s1")


def test_pages_are_made_again_only_when_the_record_differs(folder):
    for page in pages(folder):
        os.utime(page, (1, 1))
    log = folder / "runs" / "eprop-rule-s0" / "log.csv"
    before = log.read_text()
    log.write_text(before.replace(before.splitlines()[-1], ""))
    write_report(folder)
    made = {p.stem for p in pages(folder) if p.stat().st_mtime > 1}
    assert made == {"eprop-rule-s0"}
    log.write_text(before)


def test_density_is_drawn_where_it_can_be_read(folder):
    from rtrl_ext.study.run_pages import read_density

    runs = folder / "runs"
    assert list(read_density(runs / "bptt-rule-s0" / "density.csv")["density"]) == [0.1, 2, 0.01]
    assert read_density(runs / "bptt-rule-s1" / "density.csv") == {}
    assert read_density(runs / "eprop-rule-s0" / "density.csv") == {}


def test_a_run_without_a_log_has_a_page_that_says_so(tmp_path):
    folder = write_study(tmp_path / "s", rules=("bptt",), seeds=1)
    (folder / "runs" / "bptt-rule-s0" / "log.csv").unlink()
    write_report(folder)
    assert "no log that can be drawn" in (folder / "runs" / "bptt-rule-s0.html").read_text()


def test_pages_can_be_left_out(tmp_path):
    folder = write_study(tmp_path / "s", rules=("bptt",), seeds=1)
    write_report(folder, pages=False)
    assert not list((folder / "runs").glob("*.html"))
    assert "runs/" not in re.sub(r"base64,[^\"]*", "", (folder / "report.html").read_text())
