"""The tutorials run shortened and show what they say; their notebooks are theirs."""

import base64
import json
import math
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rtrl_ext.study import report

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a tutorial in this process and returns its names."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv("RTRL_EXT_TUTORIAL", "short")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    with matplotlib.rc_context():
        yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
        assert pyplot.get_fignums()
        pyplot.close("all")
    pyplot.switch_backend(backend)


def test_first_rule(run):
    pytest.importorskip("mlxtend")
    seen = run("01_first_rule")
    assert seen["difference"] < 1e-5  # LeakyRNN under BPTT trains as torch.nn.RNN
    assert seen["leak1_losses"] != seen["bptt_losses"]
    assert seen["leak"] == 0.5
    assert (seen["eprop"] - seen["immediate"]).norm() > 0.1 * seen["eprop"].norm()
    assert seen["start"]["eprop"].blocks["readout.weight"].rho == pytest.approx(1, abs=1e-5)
    recurrent = {k: v.blocks["rnn.weight_hh_l0"].cosine for k, v in seen["start"].items()}
    assert recurrent["immediate"] < recurrent["eprop"] < recurrent["mdgl"] < 0.99
    assert recurrent["bptt"] == pytest.approx(1, abs=1e-5)
    for rule, cosines in seen["cosines"].items():
        assert cosines[0] == pytest.approx(1, abs=1e-5), rule  # T = 2
        assert cosines[-1] < 0.9, rule
    ends = {k: float(seen["smooth"](losses)[-1]) for k, (_, losses, _) in seen["runs"].items()}
    assert ends["bptt"] < ends["modprop"] < ends["immediate"]
    # what the learning rate does to a rule is more than what separates two rules
    assert seen["final"]["eprop"][1] < seen["final"]["bptt"][0]


def test_sharp_minimum(run):
    seen = run("02_sharp_minimum")
    limit = 2 / seen["LR"]
    ends = {k: tracker.records[-1] for k, tracker in seen["trackers"].items()}
    first = {k: tracker.records[0] for k, tracker in seen["trackers"].items()}
    assert first["bptt"]["lambda1"] == pytest.approx(first["eprop"]["lambda1"], rel=1e-3)
    assert first["bptt"]["lambda1"] < 0.5 * limit
    assert 0.8 * limit < ends["bptt"]["lambda1"] < 1.5 * limit
    assert ends["eprop"]["lambda1"] > 2 * limit and ends["eprop"]["eta_rho_lambda1"] < 2.5
    for value, residual, exact in zip(
        seen["top"].values, seen["top"].residual_norms, seen["dense"], strict=False
    ):
        assert abs(float(value - exact)) < float(residual) + 1e-4 * float(seen["dense"][0])
    trace = seen["H"].trace("xtrace", num_products=120, seed=1)
    assert abs(trace.value - float(seen["dense"].sum())) < 4 * trace.stderr
    measured = seen["measured"]
    assert measured["loss after"] == pytest.approx(measured["loss before"], rel=1e-5)
    assert measured["after"] > 2 * measured["before"]
    for (rule, factor), growth in seen["growth"].items():
        assert (growth > 1) == (factor > 1), rule


def test_beyond_accuracy(run, monkeypatch):
    pytest.importorskip("mlxtend")
    pytest.importorskip("jinja2")
    # of the report's figures, which have tests of their own, only the one that is shown
    for name in [n for n in vars(report) if n.endswith("_figure") and n != "curvature_figure"]:
        monkeypatch.setattr(report, name, lambda *_: None)
    seen = run("03_beyond_accuracy")
    assert "6 runs: 6 finished" in seen["done"].stdout
    assert "decide none of the claims" in seen["two_seeds"]
    power = seen["power"]
    assert power.loc[2, "mean + 1 SD"] < 0.15 and power.loc[20, "mean + 1 SD"] > 0.75
    assert math.isnan(power.loc[2, "2 SD"]) and power.loc[10, "2 SD"] < 0.5 < power.loc[20, "2 SD"]
    assert (power["no effect"] < 0.12).all()
    assert seen["counts"] == {"finished": 9, "diverged": 0, "failed": 0, "waiting": 0}
    assert seen["found"].level is not None
    assert {claim.verdict for claim in seen["found"].of("C1 variance")} == {"undecided"}
    for table in seen["measured"].values():
        assert list(table.index) == [0, 1, 2] and table.notna().all(axis=None)


def test_new_rule(run):
    pytest.importorskip("mlxtend")
    seen = run("04_new_rule")
    assert set(seen["errors"]) == {"bptt", "eprop", "mdgl"}
    assert max(seen["errors"].values()) < 1e-12
    assert seen["oracle_error"] < 1e-12 and seen["limit_error"] < 1e-12
    assert seen["bptt_error"] > 0.1
    frozen, random = (seen["results"][name][1] for name in ("frozen hop", "random hop"))
    assert frozen[0].cosine == pytest.approx(1, abs=1e-5)
    assert frozen[1].cosine < 1 - 1e-6  # the weights have moved
    assert random[0].cosine < 0.95
    assert seen["report"].passed  # e-prop's, the last


def cells(script: Path) -> list[tuple[str, str]]:
    """Kind and text of the cells of a script in percent format."""
    found = []
    for part in re.split(r"^# %%", script.read_text(encoding="utf-8"), flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        kind = "markdown" if head.strip() == "[markdown]" else "code"
        if kind == "markdown":
            body = re.sub(r"^# ?", "", body, flags=re.M)
        found.append((kind, body.strip()))
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_are_executed_scripts(script):
    path = script.with_suffix(".ipynb")
    assert path.stat().st_size < 300 * 1024
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    made = [(c["cell_type"], "".join(c["source"]).strip()) for c in notebook["cells"]]
    assert made == cells(script), "run docs/tutorials/execute.py"
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert pictures
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    text = "".join("".join(o.get("text", "")) for o in outputs)
    assert "/home/" not in text and "/tmp/" not in text and "Warning" not in text


def test_every_tutorial_is_listed():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = {script.stem for script in SCRIPTS}
    assert len(names) == 4
    assert names == set(re.findall(r"\((\w+)\.ipynb\)", page))
    for script in SCRIPTS:
        for target in re.findall(r"\]\(([^)#\s]+)\)", script.read_text(encoding="utf-8")):
            assert "://" in target or (FOLDER / target).exists(), target


def test_execute_makes_a_notebook_and_names_what_fails(tmp_path):
    for name in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(name)
    execute = runpy.run_path(str(FOLDER / "execute.py"))["execute"]
    script = tmp_path / "small.py"
    script.write_text("# %% [markdown]\n# # Small\n\n# %%\nn = 6 * 7\nprint(n)\n", encoding="utf-8")
    notebook = json.loads(execute(script).read_text(encoding="utf-8"))
    assert [c["cell_type"] for c in notebook["cells"]] == ["markdown", "code"]
    assert notebook["cells"][1]["outputs"][0]["text"] in ("42\n", ["42\n"])
    script.write_text("# %%\nraise OSError('nothing there')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"(?s)small\.py.*nothing there"):
        execute(script)
    assert json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8")) == notebook


def test_execute_refuses_other_names():
    done = subprocess.run(
        [sys.executable, str(FOLDER / "execute.py"), "09"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "09: no tutorial of that name" in done.stderr
