"""``rtrl-ext curvature``: every measure on one small saved run."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rtrl_ext import cli
from rtrl_ext._commands import curvature_options
from rtrl_ext.curvature import GaussNewton, Hessian
from rtrl_ext.curvature.trace import LEAST
from rtrl_ext.study.config import RunConfig
from rtrl_ext.study.network import make_data, make_model

Run = Callable[..., tuple[int, str, str]]

RECURRENT = "rnn.parametrizations.weight_hh_l0.original"  # under Dale's law

SMALL = [
    "--task=delayed-xor", "--train-size=12", "--test-size=8", "--hidden-size=5", "--batch-size=6",
    "--iterations=4", "--curvature=none", "--final-products=5", "--trace-products=2",
    "--stop-loss=none",
]  # fmt: skip


def call(*arguments: object) -> int:
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "r"
    assert call("train", "--rule", "bptt", "--out", out, *SMALL) == 0
    return out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    def measure(*options: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = call("curvature", folder, *options)
        out, error = capsys.readouterr()
        return code, out, error

    return measure


def dense(folder: Path, cls: Any, names: list[str] | None, batch: int = 12) -> torch.Tensor:
    saved = torch.load(folder / "model.pt", weights_only=True)
    config = RunConfig.from_dict(saved["config"])
    data = make_data(config.settings, config.seed)
    model = make_model(config.settings, data.train, config.seed)
    model.load_state_dict(saved["model"])
    model.double()
    x, target = data.train.batch(slice(0, batch))
    target = target.double() if target.is_floating_point() else target
    matrix: torch.Tensor = cls(
        model, data.train.loss_fn, (x.double(), target), params=names
    ).dense()
    return matrix


def test_all_measures_against_the_dense_matrix(run: Run, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new" / "all.png"
    code, out, error = run(
        "--matrix=gauss-newton", f"--params={RECURRENT},readout.weight", "--k=3", "--which=LA",
        "--trace=xtrace", "--trace-products=20", "--density", "--probes=4", "--lanczos-steps=10",
        "--landscape", "--dim=1", "--resolution=5", "--span=0.5", "--plot", picture, "--json",
    )  # fmt: skip
    assert code == 0 and str(picture) in error
    found = json.loads(out)
    matrix = dense(folder, GaussNewton, [RECURRENT, "readout.weight"])
    values = torch.linalg.eigvalsh(matrix)
    top = float(values[-1])
    assert found["size"] == len(values) and found["matrix"] == "gauss-newton"
    assert found["eigenvalues"] == pytest.approx(values.flip(0)[:3].tolist(), abs=1e-3 * top)
    assert abs(found["trace"] - float(values.sum())) <= 4 * found["trace_stderr"] + 1e-4 * top
    assert found["trace_method"] == "xtrace" and found["trace_products"] <= 20
    density = found["density"]
    assert density["highest"] == pytest.approx(top, rel=1e-3)
    assert density["products"] <= 40 and density["probes"] == 4
    step = density["grid"][1] - density["grid"][0]
    assert sum(density["density"]) * step == pytest.approx(1, abs=1e-3)
    place = found["landscape"]
    assert len(place["loss"]) == 5 and place["loss"][2] == pytest.approx(place["center"])
    assert place["coordinates"][0] == [-0.5, -0.25, 0, 0.25, 0.5] and place["converged"]
    hessian = dense(folder, Hessian, [RECURRENT, "readout.weight"])
    largest = float(torch.linalg.eigvalsh(hessian).abs().max())
    assert abs(place["eigenvalues"][0]) == pytest.approx(largest, rel=1e-3)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


@pytest.mark.parametrize(("name", "start"), [("a.pdf", b"%PDF"), ("b.SVG", b"<?xml")])
def test_other_pictures(run: Run, tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    for _ in range(2):
        assert run("--power", "--plot", tmp_path / name)[0] == 0
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0].startswith(start) and drawn[0] == drawn[1]


def test_the_table_is_one_line_for_each_value(run: Run) -> None:
    code, out, _ = run(
        "--matrix=fisher", "--trace=hutch++", "--density", "--probes=2", "--lanczos-steps=5",
        "--landscape", "--directions=random", "--resolution=3",
    )  # fmt: skip
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "hutch++" in lines["trace_method"] and "fisher" in lines["matrix"]
    assert "2 probes" in lines["density"] and "quantiles 0.05:" in lines["density"]
    assert "3 x 3, random, loss" in lines["landscape"]
    assert max(map(len, out.splitlines())) < 200


def test_seeds_and_defaults(run: Run) -> None:
    one, same, other = (
        json.loads(run("--trace=hutchinson", "--trace-products=4", f"--seed={s}", "--json")[1])
        for s in (1, 1, 2)
    )
    assert one == same and one["trace"] != other["trace"]
    plain = json.loads(run("--json")[1])
    assert "trace" not in plain and "density" not in plain and "landscape" not in plain
    assert json.loads(run("--trace=xtrace", "--json")[1])["trace_products"] <= 100


def test_numbers_that_are_not_finite_are_null(run: Run) -> None:
    code, out, _ = run(
        "--density", "--probes=1", "--lanczos-steps=4", "--landscape", "--directions=random",
        "--span=1e30", "--resolution=3", "--json",
    )  # fmt: skip
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0 and set(found["density"]["std"]) == {None}
    assert any(v is None for row in found["landscape"]["loss"] for v in row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--matrix", "hesian"], "--matrix: invalid choice: 'hesian'"),
        (["--params", "readout.wait"], "--params: no parameter is named 'readout.wait'; nearest"),
        (["--params", "readout.bias,readout.bias"], "--params: 'readout.bias' is given twice"),
        (["--trace", "hutch"], "--trace: invalid choice: 'hutch'"),
        (["--trace", "xtrace", "--trace-products", "3"], "got 3, expected at least 4 with --trace"),
        (["--trace", "xtrace", "--trace-products", "0"], "got 0, expected at least 4 with --trace"),
        (["--power", "--k", "3"], "--power: finds one eigenvalue, the largest in modulus"),
        (["--power", "--which", "SA"], "leave out --which"),
        (["--probes", "0"], "--probes: got 0, expected at least 1"),
        (["--lanczos-steps", "1"], "--lanczos-steps: got 1, expected at least 2"),
        (["--dim", "3"], "--dim: got 3, expected 1 to 2"),
        (["--resolution", "1"], "--resolution: got 1, expected 2 to 1001"),
        (["--span", "0"], "--span: got 0.0, expected a finite number above 0"),
        (["--span", "nan"], "--span: got nan, expected a finite number above 0"),
        (["--plot", "x.jpg"], "--plot: got x.jpg, expected a name that ends in .pdf, .png, .svg"),
        (["--k", "5", "--params", "readout.bias"], "--k: got 5, expected 1 to"),
    ],
)
def test_wrong_usage(
    run: Run, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = run(*options)
    assert code == 2 and out == "" and len(error.splitlines()) == 1, error
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_as_picture_and_one_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "d.png").mkdir()
    code, _, error = run("--plot", tmp_path / "d.png")
    assert code == 2 and "a folder, expected a file" in error
    (tmp_path / "file").write_text("")
    code, _, error = run("--plot", tmp_path / "file" / "a.png")
    assert code == 1 and "cannot write there" in error


@pytest.mark.parametrize(("after", "kept"), [(0, []), (4, ["eigenvalues"]), (9, ["trace"])])
def test_interrupted(
    run: Run, monkeypatch: pytest.MonkeyPatch, after: int, kept: list[str]
) -> None:
    """The number of a call, counted from 0, that Ctrl-C meets."""
    from rtrl_ext.curvature import operators

    product, calls = operators.CurvatureOperator.__matmul__, []

    def stopping(self: Any, v: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return product(self, v)

    stop = 10**9
    monkeypatch.setattr(operators.CurvatureOperator, "__matmul__", stopping)
    options = ("--trace=hutchinson", "--trace-products=200", "--landscape", "--json")
    assert run(*options, "--directions=random", "--resolution=2")[0] == 0
    eigen = len(calls) - 13  # 200 probes, 16 a call
    stop = {0: 0, 4: 4, 9: eigen + 3}[after]
    calls.clear()
    warned = pytest.warns(RuntimeWarning, match="interrupted")
    with warned if kept else contextlib.nullcontext():
        code, out, error = run(*options)
    found = json.loads(out)
    assert code == 1 and error.splitlines()[-1].startswith("rtrl-ext: error: interrupted")
    assert "landscape" not in found and ("trace" in found) == (kept == ["trace"])
    assert ("eigenvalues" in found) == bool(kept)
    assert kept != ["eigenvalues"] or not found["converged"]


def test_choices_are_those_of_the_library() -> None:
    assert LEAST == curvature_options.TRACES
