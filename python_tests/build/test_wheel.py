"""What a wheel and a source distribution hold, and what the library needs where it is installed."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("scikit_build_core")


def build(hook, where, settings):
    """Run one of the build backend's hooks in the source tree; the file that it makes."""
    code = f"import scikit_build_core.build as b; b.{hook}({str(where)!r}, {settings!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = where.iterdir()
    return made


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Files of a wheel that is made without compiling."""
    made = build("build_wheel", tmp_path_factory.mktemp("wheel"), {"wheel.cmake": "false"})
    with zipfile.ZipFile(made) as wheel:
        return set(wheel.namelist())


def test_wheel_holds_the_whole_package(names):
    ours = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "rtrl_ext").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and p.suffix not in (".so", ".pyc")
    }
    assert ours == {n for n in names if ".dist-info/" not in n}
    assert {"rtrl_ext/py.typed", "rtrl_ext/_C.pyi"} <= ours
    assert {p.rsplit(".", 1)[1] for p in ours if "/templates/" in p} == {"j2", "css"}


def test_wheel_has_license_and_command(names):
    ends = {n.split(".dist-info/")[1] for n in names if ".dist-info/" in n}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= ends


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git")
def test_source_distribution_can_be_built_from(tmp_path):
    made = build("build_sdist", tmp_path, {})
    with tarfile.open(made) as archive:
        held = {n.partition("/")[2] for n in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "rtrl_ext", "python_tests", "docs", "examples"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = {f for f in tracked.stdout.split() if (ROOT / f).exists()}
    assert wanted | {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"} <= held
    assert not [n for n in held if n.endswith(".so") or n.startswith((".venv", "build/"))]


STUDY_PACKAGES = ("scipy", "pandas", "matplotlib", "jinja2", "rich", "mlxtend")
BARE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {STUDY_PACKAGES!r}:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def bare(code, cwd):
    """Run code where the packages of the extras are missing."""
    command = [sys.executable, "-c", BARE + code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_core_needs_torch_and_numpy_alone(tmp_path):
    code = """
import torch, rtrl_ext as rx
model = rx.LeakyRNN(3, 5, leak=0.3, rule="eprop")
data = torch.randn(6, 4, 3), torch.randn(6, 4, 5)
loss_fn = lambda output, target: (output[0] - target).square().mean()
loss_fn(model(data[0]), data[1]).backward()
assert model.weight_hh_l0.grad.abs().max() > 0
rx.curvature.Hessian(model, loss_fn, data).eigsh()
rx.diagnostics.alignment(model, loss_fn, data)
from rtrl_ext.cli import main
raise SystemExit(main(["info"]))
"""
    done = bare(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "instruction set in use" in done.stdout


def test_a_study_without_its_packages_names_them(tmp_path):
    code = """
from rtrl_ext.cli import main
raise SystemExit(main(["study", "run", "--rules", "bptt", "--out", "study"]))
"""
    done = bare(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "pip install" in done.stderr
    assert "rtrl_ext[study]" in done.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_built_wheel_works_elsewhere(tmp_path):
    """Compiled without CUDA, unpacked into a folder of its own, used from there."""
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps",
        "-C", "cmake.define.RTRL_EXT_CUDA=OFF", "-C", f"build-dir={tmp_path / 'build'}",
        "-w", str(tmp_path / "dist"), str(ROOT),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (made,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(made) as wheel:
        wheel.extractall(tmp_path / "site")
    code = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__.lower()
                 and "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, {str(tmp_path / "site")!r})
import rtrl_ext
assert rtrl_ext.__file__.startswith({str(tmp_path)!r}), rtrl_ext.__file__
from rtrl_ext.cli import main
raise SystemExit(main(["info"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "CPU-only build" in done.stdout
