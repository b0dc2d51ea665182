"""The JAX peers, in a process of their own: commands as JSON lines on standard input.

    {"op": "build", "id": 1, "kind": "scan", "case": {...}, "options": {...}}
    {"op": "time", "id": 1, "inner": 5}

Kinds: "scan" (jitted gradient of a lax.scan), "stopgrad" (EProp by stop-gradient), "braintrace"
(braintrace.EProp), "hvp" (jitted vmap(jvp(grad))). Gradients come back in an .npz file.
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

from benchmarks.problem import Case, make_data

Call = Callable[[], Any]
Answer = Callable[[Any], list[np.ndarray]]


def _forward(p: Any, x: Any, leak: float, nonlinearity: str, stop: bool) -> Any:
    w_ih, w_hh, b_ih, b_hh = p
    phi = {"tanh": jnp.tanh, "relu": jax.nn.relu}[nonlinearity]
    pre = x @ w_ih.T + (b_ih + b_hh)

    def step(h: Any, pre_t: Any) -> tuple[Any, Any]:
        source = jax.lax.stop_gradient(h) if stop else h
        new = phi(pre_t + source @ w_hh.T)
        h = new if leak == 1.0 else (1 - leak) * h + leak * new
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[1], w_hh.shape[0]), x.dtype), pre)[1]


def _params(data: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(jnp.asarray(data[k]) for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def build_scan(data: dict[str, Any], options: dict[str, Any], stop: bool) -> tuple[Call, Answer]:
    p, x, gy = _params(data), jnp.asarray(data["x"]), jnp.asarray(data["gy"])
    leak, nonlinearity = options["leak"], options.get("nonlinearity", "tanh")

    @jax.jit
    def grad(p: Any, x: Any, gy: Any) -> Any:
        return jax.grad(lambda q: jnp.sum(_forward(q, x, leak, nonlinearity, stop) * gy))(p)

    return lambda: jax.block_until_ready(grad(p, x, gy)), lambda g: [np.asarray(a) for a in g]


def build_hvp(data: dict[str, Any], options: dict[str, Any]) -> tuple[Call, Answer]:
    p, x, target = _params(data), jnp.asarray(data["x"]), jnp.asarray(data["gy"])
    rng = np.random.default_rng(1)
    v = tuple(
        jnp.asarray(rng.standard_normal((options["k"], *a.shape), dtype=np.float32)) for a in p
    )

    def loss(q: Any, x: Any, target: Any) -> Any:
        return jnp.mean((_forward(q, x, options["leak"], "tanh", False) - target) ** 2)

    @jax.jit
    def hvp(p: Any, x: Any, target: Any, v: Any) -> Any:
        grad = jax.grad(lambda q: loss(q, x, target))
        return jax.vmap(lambda d: jax.jvp(grad, (p,), (d,))[1])(v)

    return lambda: jax.block_until_ready(hvp(p, x, target, v)), lambda g: [np.asarray(a) for a in g]


def build_braintrace(data: dict[str, Any], options: dict[str, Any]) -> tuple[Call, Answer]:
    import brainstate
    import braintrace

    leak = options["leak"]
    x, gy = jnp.asarray(data["x"]), jnp.asarray(data["gy"])
    B, m = x.shape[1:]
    n = data["weight_hh"].shape[0]
    w = jnp.concatenate([jnp.asarray(data["weight_ih"]).T, jnp.asarray(data["weight_hh"]).T])
    b = jnp.asarray(data["bias_ih"] + data["bias_hh"])

    class Cell(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = braintrace.nn.Linear(
                m + n, n, w_init=lambda *a, **k: w, b_init=lambda *a, **k: b
            )

        def init_state(self, batch_size: int | None = None, **_: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, n)))

        def update(self, x_t: Any) -> Any:
            u = self.lin(jnp.concatenate([x_t, self.h.value], -1))
            self.h.value = (1 - leak) * self.h.value + leak * jnp.tanh(u)
            return self.h.value

    net = Cell()
    learner = braintrace.compile(net, braintrace.EProp, x[0], batch_size=B)

    @brainstate.transform.jit
    def grad(x: Any, gy: Any) -> Any:
        learner.reset_state(batch_size=B)
        net.h.value = jnp.zeros((B, n))
        return learner.etrace_grad(
            x, gy, step_fn=lambda a, g: jnp.sum(learner(a) * g), reduction="sum"
        )

    def answer(g: Any) -> list[np.ndarray]:
        leaves = {np.ndim(a): np.asarray(a) for a in jax.tree.leaves(g)}
        both, bias = leaves[2], leaves[1]
        return [both[:m].T, both[m:].T, bias, bias]

    return lambda: jax.block_until_ready(grad(x, gy)), answer


def build(kind: str, case: Case, options: dict[str, Any]) -> tuple[Call, Answer]:
    data = make_data(case)
    if kind in ("scan", "stopgrad"):
        return build_scan(data, options, stop=kind == "stopgrad")
    if kind == "hvp":
        return build_hvp(data, options)
    if kind == "braintrace":
        return build_braintrace(data, options)
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
