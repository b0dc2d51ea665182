"""Registers, spills and shared memory of the CUDA kernels as ptxas reports them:
``python python_tests/resources.py`` (``make budget``) writes them to csrc_tests/budget.json."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUDGET = ROOT / "csrc_tests" / "budget.json"
KERNELS = sorted((ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100", "120")
USED = re.compile(
    r"Compiling entry function '(\S+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers(.*?)\n",
    re.DOTALL,
)

Numbers = dict[str, dict[str, int]]


def _one(source: Path, architecture: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                "nvcc", "-std=c++17", "-O3", "-DRX_NS=device", f"-I{ROOT / 'csrc'}", "-cubin",
                f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas=-v",
                "--Werror=all-warnings", str(source), "-o", f"{folder}/kernel.cubin",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{source.name}, sm_{architecture}: {done.stderr}")
    return done.stderr


def measure(architecture: str) -> Numbers:
    """Kernel -> registers per thread, bytes spilled, bytes of static shared memory."""
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(_one, KERNELS, [architecture] * len(KERNELS)))
    found: Numbers = {}
    for name, _, stores, loads, registers, rest in USED.findall("".join(reports)):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = {
            "registers": int(registers),
            "spilled": int(stores) + int(loads),
            "shared": int(shared.group(1)) if shared else 0,
        }
    names = subprocess.run(
        [shutil.which("c++filt") or "c++filt", *found], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    # the name up to the parameters, without the namespaces
    short = [re.sub(r">\(.*", ">", n.removeprefix("void ")) for n in names]
    short = [re.sub(r"rx::cuda::|\(rx::(cuda::)?(Transport|Part)\)", "", n) for n in short]
    return dict(sorted(zip(short, found.values(), strict=True)))


def main() -> int:
    table = {f"sm_{a}": measure(a) for a in ARCHITECTURES}
    BUDGET.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
