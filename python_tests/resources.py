"""What nvcc made of the CUDA kernels: ``python python_tests/resources.py`` (``make budget``) writes
csrc_tests/budget.json and docs/cuda_bounds.md.

Of each kernel and architecture: registers per thread, bytes spilled, bytes of static shared memory,
occupancy (per cent of the warps a multiprocessor can hold, for blocks of 256 threads without
dynamic shared memory), and its accesses of 16 and 8 bytes and tensor-core instructions.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sass
from emulated import KERNELS, ROOT

BUDGET = ROOT / "csrc_tests" / "budget.json"
ARCHITECTURES = ("80", "90", "100", "120")
THREADS = 256
WARPS = {
    "80": 64,
    "90": 64,
    "100": 64,
    "120": 48,
}  # of a multiprocessor, which has 65,536 registers
USED = re.compile(
    r"Compiling entry function '(\S+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers(.*?)\n",
    re.DOTALL,
)

Numbers = dict[str, dict[str, int]]


def missing() -> str | None:
    """What is not installed of what this needs."""
    if shutil.which("nvcc") is None:
        return "nvcc is not installed"
    return None if sass.tool() else "nvdisasm is not installed"


def compiler() -> str:
    """Version of nvcc, such as 13.0."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+),", text)
    return found.group(1) if found else "?"


def sources() -> str:
    """A digest of what the machine code is made of: kernels, headers, these flags, the compiler."""
    folders = ("cells", "kernels", "kernels/cuda")
    headers = [h for f in folders for h in sorted((ROOT / "csrc" / f).glob("*.h"))]
    files = [*KERNELS, *headers, Path(__file__)]
    parts = [f"{path.name}\n{path.read_text()}" for path in files]
    return hashlib.sha256("\n".join([compiler(), *parts]).encode()).hexdigest()


def _one(source: Path, architecture: str) -> tuple[str, dict[str, sass.Code]]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        done = subprocess.run(
            [
                "nvcc", "-std=c++17", "-O3", "-DRX_NS=device", f"-I{ROOT / 'csrc'}", "-cubin",
                f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas=-v",
                "--Werror=all-warnings", str(source), "-o", str(cubin),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{source.name}, sm_{architecture}: {done.stderr}")
        return done.stderr, sass.kernels(cubin)


def occupancy(registers: int, architecture: str) -> int:
    """Per cent; registers are given out to warps in units of 256."""
    per_warp = -(-registers * 32 // 256) * 256
    warps = THREADS // 32
    blocks = min(65536 // per_warp // warps, WARPS[architecture] // warps)
    return 100 * blocks * warps // WARPS[architecture]


def short_names(names: list[str]) -> list[str]:
    """Readable ones: up to the parameters, without the namespaces."""
    plain = subprocess.run(
        [shutil.which("c++filt") or "c++filt", *names], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    plain = [re.sub(r">\(.*", ">", n.removeprefix("void ")) for n in plain]
    return [
        re.sub(r"rx::(cuda::|device::)?|\(rx::(cuda::)?(Transport|Part)\)", "", n) for n in plain
    ]


def measure(architecture: str) -> tuple[Numbers, dict[str, sass.Code]]:
    """Kernel -> its numbers, and its code."""
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(_one, KERNELS, [architecture] * len(KERNELS)))
    code = {name: body for _, bodies in made for name, body in bodies.items()}
    used = USED.findall("".join(report for report, _ in made))
    names = short_names([row[0] for row in used])
    found: Numbers = {}
    by_name: dict[str, sass.Code] = {}
    for short, (name, _, stores, loads, registers, rest) in zip(names, used, strict=True):
        by_name[short] = code[name]
        shared = re.search(r"(\d+) bytes smem", rest)
        found[short] = {
            "registers": int(registers),
            "spilled": int(stores) + int(loads),
            "shared": int(shared.group(1)) if shared else 0,
            "occupancy": occupancy(int(registers), architecture),
        } | sass.counts(code[name])
    return dict(sorted(found.items())), by_name


def main() -> int:
    import bounds

    lines = [f' "of": "{sources()}"']
    for architecture in ARCHITECTURES:
        found, code = measure(architecture)
        rows = [f"  {json.dumps(name)}: {json.dumps(n)}" for name, n in found.items()]
        lines.append(f' "sm_{architecture}": {{\n' + ",\n".join(rows) + "\n }")
        if architecture == "90":
            bounds.PAGE.write_text(bounds.page(code, compiler()))
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
