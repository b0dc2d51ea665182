"""braintrace's online algorithms on the rate cell and on GRU; runs in the JAX worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

Call = Callable[[], Any]
Answer = Callable[[Any], list[np.ndarray]]


def _linear(w: Any, b: Any) -> Any:
    """braintrace's x @ w + b; w (in, out)."""
    return braintrace.nn.Linear(
        *w.shape, w_init=lambda *a, **k: jnp.asarray(w), b_init=lambda *a, **k: jnp.asarray(b)
    )


class Rate(brainstate.nn.Module):
    """The leaky rate cell; one product of [x, h]."""

    def __init__(self, data: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__()
        self.n, self.m = data["weight_ih"].shape
        self.leak = options["leak"]
        both = np.concatenate([data["weight_ih"], data["weight_hh"]], 1).T
        self.lin = _linear(both, data["bias_ih"] + data["bias_hh"])

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, self.n)))

    def update(self, x_t: Any) -> Any:
        u = self.lin(jnp.concatenate([x_t, self.h.value], -1))
        self.h.value = (1 - self.leak) * self.h.value + self.leak * jnp.tanh(u)
        return self.h.value

    def gradients(self, of: dict[str, Any]) -> list[np.ndarray]:
        w, b = _parts(of, "lin")
        return [w[: self.m].T, w[self.m :].T, b, b]


class GRU(brainstate.nn.Module):
    """GRU as in torch; one product of [x, h] for r and for z, two for n."""

    def __init__(self, data: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__()
        self.n, self.m = data["weight_hh"].shape[1], data["weight_ih"].shape[1]
        (ur, uz, un), (wr, wz, wn), (br, bz, bn), (cr, cz, cn) = (
            np.split(data[k], 3) for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        self.r = _linear(np.concatenate([ur, wr], 1).T, br + cr)
        self.z = _linear(np.concatenate([uz, wz], 1).T, bz + cz)
        self.nx, self.nh = _linear(un.T, bn), _linear(wn.T, cn)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, self.n)))

    def update(self, x_t: Any) -> Any:
        h = self.h.value
        both = jnp.concatenate([x_t, h], -1)
        r, z = jax.nn.sigmoid(self.r(both)), jax.nn.sigmoid(self.z(both))
        q = jnp.tanh(self.nx(x_t) + r * self.nh(h))
        self.h.value = (1 - z) * q + z * h
        return self.h.value

    def gradients(self, of: dict[str, Any]) -> list[np.ndarray]:
        (wr, br), (wz, bz), (un, bn), (wn, cn) = (_parts(of, k) for k in ("r", "z", "nx", "nh"))
        inputs = np.concatenate([wr[: self.m].T, wz[: self.m].T, un.T])
        recurrent = np.concatenate([wr[self.m :].T, wz[self.m :].T, wn.T])
        return [inputs, recurrent, np.concatenate([br, bz, bn]), np.concatenate([br, bz, cn])]


def _parts(of: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of weight (in, out) and bias of the linear layer of this name."""
    (mine,) = (value for path, value in of.items() if name in path)
    leaves = {np.ndim(a): np.asarray(a) for a in jax.tree.leaves(mine)}
    return leaves[2], leaves[1]


def build(data: dict[str, Any], options: dict[str, Any]) -> tuple[Call, Answer]:
    """A jitted gradient by the algorithm of that name, and its four arrays in torch's layout."""
    x, gy = jnp.asarray(data["x"]), jnp.asarray(data["gy"])
    B = x.shape[1]
    net: Any = {"RNN": Rate, "GRU": GRU}[options.get("cell", "RNN")](data, options)
    algorithm = getattr(braintrace, options.get("algorithm", "EProp"))
    learner = braintrace.compile(net, algorithm, x[0], batch_size=B)

    @brainstate.transform.jit
    def grad(x: Any, gy: Any) -> Any:
        learner.reset_state(batch_size=B)
        net.h.value = jnp.zeros((B, net.n))
        return learner.etrace_grad(
            x, gy, step_fn=lambda a, g: jnp.sum(learner(a) * g), reduction="sum"
        )

    return lambda: jax.block_until_ready(grad(x, gy)), net.gradients
