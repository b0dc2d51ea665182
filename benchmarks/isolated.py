"""Measurements that need a process of their own; prints one JSON line.

python -m benchmarks.isolated sequence KIND T     memory and time of one long sequence
python -m benchmarks.isolated cold KIND           imports and first calls
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from .problem import Case, make_data

#: n and m of the long sequences; B = 1.
N = 64


def ask(*arguments: str, threads: int = 1, python: str | None = None) -> dict[str, Any]:
    """Runs this file in a new process; RuntimeError with its last line if it fails."""
    import os
    import pathlib

    root = pathlib.Path(__file__).resolve().parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [python or sys.executable, "-m", "benchmarks.isolated", *arguments],
        capture_output=True, text=True, env=env, cwd=root, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def sequence(kind: str, T: int) -> dict[str, Any]:
    """Peak and kept memory (beside inputs, parameters and output) and time of one gradient."""
    import torch

    from . import ours
    from .memory import peak_resident, resident
    from .peers import loops

    def build(case: Case) -> tuple[Any, ...]:
        data = ours.tensors(case)
        params, x, gy = ours.params_of(data), data["x"], data["gy"]
        if kind == "nn.RNN":
            rnn: Any = loops.torch_rnn(params, "tanh")
            return (lambda: rnn(x)[0]), tuple(rnn.parameters()), gy
        if kind == "detach loop":
            return (lambda: loops.loop_forward(params, x, leak=0.5, rule="eprop")), params, gy
        rnn = ours.module(params, kind, leak=1.0 if kind == "bptt" else 0.5)
        return (lambda: rnn(x)[0]), tuple(rnn.parameters()), gy

    small = build(Case(N, N, 1, 50))
    for _ in range(2):
        torch.autograd.grad(small[0](), small[1], small[2])
    forward, params, gy = build(Case(N, N, 1, T))
    start = resident()
    t0 = time.perf_counter()
    y = forward()
    t1 = time.perf_counter()
    kept = resident() - start
    torch.autograd.grad(y, params, gy)
    t2 = time.perf_counter()
    numbers = T * N * 4
    return {
        "seconds": t2 - t0,
        "forward_s": t1 - t0,
        "peak_bytes": peak_resident() - start,
        "peak_numbers": (peak_resident() - start) / numbers,
        "kept_numbers": kept / numbers,
    }


def cold(kind: str) -> dict[str, Any]:
    """Seconds: import of the framework, of the library, first and second training step."""
    case = Case(128, 64, 32, 100)
    if kind == "jax":
        t0 = time.perf_counter()
        from .peers import jax_worker

        t1 = t2 = time.perf_counter()
        call, _ = jax_worker.build("scan", case, {"leak": 1.0})
    else:
        t0 = time.perf_counter()
        import torch

        t1 = time.perf_counter()
        if kind == "ours":
            import rtrl_ext

            assert rtrl_ext.LeakyRNN is not None
        t2 = time.perf_counter()
        from . import ours
        from .peers import loops

        data = ours.tensors(case)
        params = ours.params_of(data)
        if kind == "ours":
            call = ours.gradient(ours.module(params, "bptt"), data["x"], data["gy"])
        else:
            rnn = loops.torch_rnn(params, "tanh")
            own: Any = tuple(rnn.parameters())
            call = loops.gradient(lambda: rnn(data["x"])[0], own, data["gy"])
        assert torch.get_num_threads() >= 1
    t3 = time.perf_counter()
    call()
    t4 = time.perf_counter()
    call()
    t5 = time.perf_counter()
    return {
        "framework_import_s": t1 - t0,
        "library_import_s": t2 - t1,
        "first_call_s": t4 - t3,
        "second_call_s": t5 - t4,
    }


def main(argv: list[str]) -> int:
    make_data(Case(2, 2, 1, 1))
    if len(argv) == 3 and argv[0] == "sequence":
        print(json.dumps(sequence(argv[1], int(argv[2]))))
    elif len(argv) == 2 and argv[0] == "cold":
        print(json.dumps(cold(argv[1])))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
