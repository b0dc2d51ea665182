"""The JAX peers, in a process of their own: commands as JSON lines on standard input.

    {"op": "build", "id": 1, "kind": "scan", "case": {...}, "options": {...}}
    {"op": "time", "id": 1, "inner": 5}

Kinds: "scan" (jitted gradient of a lax.scan), "stopgrad" (EProp by stop-gradient), "braintrace"
(braintrace.EProp, or the option "algorithm"), "hvp" (jitted vmap(jvp(grad))). The option "cell" is
a key of jax_cells.CELLS, by default "RNN". Gradients come back in an .npz file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.jax_cells import CELLS
from benchmarks.problem import Case, make_data
from benchmarks.spiking_problem import make_spiking_data

Call = Callable[[], Any]
Answer = Callable[[Any], list[np.ndarray]]


def _params(data: dict[str, Any]) -> tuple[Any, ...]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return tuple(jnp.asarray(data[k]) for k in names if k in data)


def build_scan(data: dict[str, Any], options: dict[str, Any], stop: bool) -> tuple[Call, Answer]:
    p, x, gy = _params(data), jnp.asarray(data["x"]), jnp.asarray(data["gy"])
    forward = CELLS[options.get("cell", "RNN")]

    @jax.jit
    def grad(p: Any, x: Any, gy: Any) -> Any:
        return jax.grad(lambda q: jnp.sum(forward(options, q, x, stop) * gy))(p)

    return lambda: jax.block_until_ready(grad(p, x, gy)), lambda g: [np.asarray(a) for a in g]


def build_hvp(data: dict[str, Any], options: dict[str, Any]) -> tuple[Call, Answer]:
    p, x, target = _params(data), jnp.asarray(data["x"]), jnp.asarray(data["gy"])
    forward = CELLS[options.get("cell", "RNN")]
    rng = np.random.default_rng(1)
    v = tuple(
        jnp.asarray(rng.standard_normal((options["k"], *a.shape), dtype=np.float32)) for a in p
    )

    def loss(q: Any, x: Any, target: Any) -> Any:
        return jnp.mean((forward(options, q, x, False) - target) ** 2)

    @jax.jit
    def hvp(p: Any, x: Any, target: Any, v: Any) -> Any:
        grad = jax.grad(lambda q: loss(q, x, target))
        return jax.vmap(lambda d: jax.jvp(grad, (p,), (d,))[1])(v)

    return lambda: jax.block_until_ready(hvp(p, x, target, v)), lambda g: [np.asarray(a) for a in g]


def build(kind: str, case: Case, options: dict[str, Any]) -> tuple[Call, Answer]:
    spiking = options.get("cell") in ("ALIF", "LIF")
    data = make_spiking_data(case) if spiking else make_data(case)
    if kind in ("scan", "stopgrad"):
        return build_scan(data, options, stop=kind == "stopgrad")
    if kind == "hvp":
        return build_hvp(data, options)
    if kind == "braintrace":
        from benchmarks.peers import jax_braintrace

        return jax_braintrace.build(data, options)
    raise ValueError(f"kind: got {kind!r}, expected scan, stopgrad, hvp or braintrace")


def main() -> None:
    calls: dict[int, Call] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "versions":
                import importlib.metadata as metadata

                reply: dict[str, Any] = {}
                for name in ("jax", "jaxlib", "braintrace"):
                    try:
                        reply[name] = metadata.version(name)
                    except metadata.PackageNotFoundError:
                        reply[name] = None
            elif request["op"] == "build":
                call, answer = build(request["kind"], Case(**request["case"]), request["options"])
                t0 = time.perf_counter()
                arrays = answer(call())
                first = time.perf_counter() - t0
                np.savez(request["path"], *arrays)
                calls[request["id"]] = call
                reply = {"first_call_s": first}
            elif request["op"] == "drop":
                calls.clear()
                reply = {}
            else:
                call = calls[request["id"]]
                c0, t0 = time.process_time(), time.perf_counter()
                for _ in range(request["inner"]):
                    call()
                reply = {"wall": time.perf_counter() - t0, "cpu": time.process_time() - c0}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
