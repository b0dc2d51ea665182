"""The report of a study with remedies and several step sizes: tables, figures, methods."""

import html
import math
import re

import numpy as np
import pandas as pd
import pytest
from synthetic_study import write_study

from rtrl_ext.study.claim_rows import claims_latex
from rtrl_ext.study.report import summary_text, write_report

ENTRIES = {
    "early": {"kind": "rule", "lr_factor": 3.0, "lr_fraction": 0.1},
    "rescaled": {"kind": "rescaled"},
    **{f"lr={lr:g}": {"kind": "rule", "lr": lr} for lr in (0.003, 0.1)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("arms") / "s"
    write_study(
        place, rules=("bptt", "eprop"), arms=("rule", *ENTRIES), entries=ENTRIES, seeds=8,
        cures={"early": (-0.08, 0.2)}, diverge=(("rescaled", "eprop", 0),),
        sharpness={"eprop": 0.5},
    )  # fmt: skip
    write_report(place, pages=False)
    return place


@pytest.fixture(scope="module")
def claims(folder):
    return pd.read_csv(folder / "claims.csv").set_index(["claim", "subject"]).sort_index()


def test_figures_of_remedies_and_step_sizes(folder):
    for name in ("remedies", "phase_diagram"):
        assert {p.suffix for p in (folder / "figures").glob(f"{name}.*")} == {
            ".png",
            ".pdf",
            ".svg",
        }
    page = (folder / "report.html").read_text()
    assert "Leading eigenvalue and stability limit" in page
    assert "Filled marks: lower in both" in page


def test_claims_csv_has_what_the_runs_say(folder, claims):
    runs = pd.read_csv(folder / "runs.csv")
    # C5: ratio of λ₁ and difference of gaps, remedy against plain rule, paired by seed
    wide = runs[runs["rule"] == "eprop"].pivot(index="seed", columns="arm")
    ratio = wide["lambda1_at_0.3"]["early"] / wide["lambda1_at_0.3"]["rule"]
    gap = wide["gap_loss_at_0.3"]["early"] - wide["gap_loss_at_0.3"]["rule"]
    row = claims.loc[("C5 curvature", "e-prop, 3η for 10 %")]
    assert row["effect"] == pytest.approx(math.exp(np.log(ratio).mean()))
    assert row["low"] < row["effect"] < row["high"] < 0.5
    row = claims.loc[("C5 gap", "e-prop, 3η for 10 %")]
    assert row["effect"] == pytest.approx(gap.mean()) and row["high"] < 0 and row["d"] < -1
    # C4: slope of log λ₁ on log 2/(ηρ) over the step sizes at which runs reach half of that
    own = runs[(runs["rule"] == "eprop") & runs["arm"].isin(["rule", "lr=0.003", "lr=0.1"])]
    ratio = own["lr"] * own["rho"] * own["lambda1_full"] / 2
    assert ratio[own["arm"] == "rule"].median() < 0.5 < ratio[own["arm"] != "rule"].min()
    own = own[own["arm"] != "rule"]
    limit = np.log(2 / (own["lr"] * own["rho"]))
    slope = np.polyfit(limit, np.log(own["lambda1_full"]), 1)[0]
    assert claims.loc[("C4", "e-prop"), "effect"] == pytest.approx(slope)
    assert (claims.loc[("C4", "e-prop"), ["n", "runs"]] == [8, 16]).all()
    assert claims.loc[("C4", "e-prop"), "note"].endswith("; 8 don't count")


def test_verdicts_of_the_whole(folder, claims):
    assert claims.loc[("C5", "overall"), "verdict"] == "supported"
    assert claims.loc[("C4", "overall"), "verdict"] == "supported"
    assert claims.loc[("C5", "e-prop, 3η for 10 %"), "verdict"] == "supported"
    assert claims.loc[("C5", "e-prop at η/ρ̄"), "note"].endswith("1 diverged")
    text = summary_text(folder)
    assert "What the remedies did" in text and "diverged 1/8 (12 %): undecided" in text
    assert re.search(r"C5 +supported: ", text)


def test_remedies_of_the_report(folder):
    page = (folder / "report.html").read_text()
    table = page[page.index("remedies-table") :]
    row = re.search(r"<tr><th scope=\"row\">e-prop at η/ρ̄</th>.*?</tr>", table, re.S).group()
    cells = [re.sub("<.*?>", " ", c).strip() for c in re.findall(r"<td.*?</td>", row, re.S)]
    assert cells[0].startswith("undecided (n = 7)") and cells[-3:] == ["7", "7/8", "1/8 (12 %)"]


def test_latex_compiles_in_the_eye_of_a_parser(folder):
    text = (folder / "claims.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    frame = pd.read_csv(folder / "claims.csv")
    assert len(body) == (frame["subject"] != "overall").sum()
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 7 and line.endswith(r"\\")
        assert not re.search(r"(?<!\\)[%#_]", re.sub(r"\$.*?\$", "", line))
    outside = re.sub(r"\$.*?\$", "", text)
    assert outside.isascii() and r"$\lambda_1$" in text


def test_latex_escapes_names():
    frame = pd.DataFrame([{
        "claim": "C1 mean", "subject": "tbptt_k & 5%", "measure": "a\\b", "effect": 1.0,
        "low": math.nan, "high": math.nan, "n": 3, "p_holm": math.nan, "verdict": "undecided",
    }])  # fmt: skip
    line = claims_latex(frame).split(r"\midrule")[1].strip().splitlines()[0]
    assert r"tbptt\_k \& 5\% & a\textbackslash{}b & 1 & -- & 3 & -- & undecided" in line


def test_methods_say_what_was_run(folder):
    text = (folder / "methods.txt").read_text()
    assert text.count("\n") == 1
    for part in (
        "seqmnist", "eta = 0.03", "BPTT, e-prop; 8 seeds each", "3η for 10 %",
        "first fell to 0.3", "Welch", "Holm", "torch 2.13.0", "1 diverged",
    ):  # fmt: skip
        assert part in text, part
    assert "momentum" not in text and "Brown-Forsythe" in text
    assert text.strip() in html.unescape((folder / "report.html").read_text())


def test_columns_that_were_not_measured(tmp_path):
    """No accuracy and no λ₁: sharpness stands in, and the report says so."""
    folder = write_study(
        tmp_path / "s", task="evidence", seeds=4, without=("lambda1", "acc"),
        sharpness={"eprop": 6.0}, rules=("bptt", "eprop"),
    )  # fmt: skip
    write_report(folder, pages=False)
    page = (folder / "report.html").read_text()
    assert "Sharpness by perturbation at the end of training stands in" in page
    assert "accuracy gap" not in page and ">nan<" not in page.lower()
    claims = pd.read_csv(folder / "claims.csv")
    assert set(claims["claim"]) == {"C1 mean", "C1 variance", "C2", "C3", "C4", "C5"}
    row = claims[claims["claim"] == "C3"].iloc[0]
    final = pd.read_csv(folder / "runs.csv").pivot(
        index="seed", columns="rule", values="sharpness_mean"
    )
    ratio = math.exp(np.log(final["eprop"] / final["bptt"]).mean())
    assert row["measure"] == "sharpness at the end" and row["effect"] == pytest.approx(ratio)
    assert not list((folder / "figures").glob("lambda1*"))
    assert "perturb" not in (folder / "methods.txt").read_text()
    assert "random noise of 1 % on the weights" in (folder / "methods.txt").read_text()
