"""Machine code of the CUDA kernels as nvdisasm prints it: which instructions, and which loops."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
LABEL = re.compile(r"^(\.L_x_\d+):")
FUNCTION = re.compile(r"^\.text\.(\S+):")

#: One kernel: opcodes and operands in order, labels as (None, name).
Code = list[tuple[str | None, str]]


def tool() -> str | None:
    """nvdisasm of a toolkit or of the environment (nvidia-cuda-nvdisasm), if there is one."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    inside = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm"))
    return str(inside[-1]) if inside else None


def kernels(cubin: Path) -> dict[str, Code]:
    """Mangled name -> code."""
    text = subprocess.run(
        [tool() or "nvdisasm", "-c", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Code] = {}
    current: Code = []
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            current = found.setdefault(match.group(1), [])
        elif match := LABEL.match(line):
            current.append((None, match.group(1)))
        elif match := INSTRUCTION.match(line):
            current.append((match.group(1), match.group(2)))
    return found


def counts(code: Code) -> dict[str, int]:
    """What a budget asks for: accesses of 16 and 8 bytes, tensor cores, use of local memory."""
    mix: Counter[str] = Counter()
    for opcode, _ in code:
        parts = (opcode or "").split(".")
        for kind in ("LDG", "STG", "LDS"):
            if parts[0] == kind:
                mix[kind + (".128" if "128" in parts else ".64" if "64" in parts else "")] += 1
        mix["HMMA"] += parts[0] == "HMMA"
        mix["local"] += parts[0] in ("LDL", "STL")
        mix["atomic"] += parts[0] in ("ATOM", "ATOMG", "ATOMS", "RED", "REDG")
    return {
        key: mix[key] for key in ("LDG.128", "STG.128", "LDG.64", "STG.64", "LDS.128", "HMMA",
                                  "local", "atomic")
    }  # fmt: skip


def instructions(code: Code) -> int:
    return sum(opcode is not None for opcode, _ in code)


def count(code: Code, opcode: str) -> int:
    """How often an instruction stands there, whatever its modifiers."""
    return sum((o or "").split(".")[0] == opcode for o, _ in code)


def loops(code: Code) -> list[Code]:
    """The bodies of all loops: from a label to a branch back to it."""
    where = {name: i for i, (opcode, name) in enumerate(code) if opcode is None}
    found = []
    for i, (opcode, operands) in enumerate(code):
        target = re.search(r"`\((\.L_x_\d+)\)", operands) if opcode == "BRA" else None
        if target and where.get(target.group(1), i) < i:
            found.append(code[where[target.group(1)] : i + 1])
    return found


def main_loop(code: Code, opcode: str) -> Code:
    """The loop in which this instruction is the largest part: that of the products."""
    return max(loops(code), key=lambda body: count(body, opcode) / len(body))
