"""The cells in JAX, as scans. Runs in the environment of the JAX worker.

`forward(options, params, x, stop)` is the outputs (T, B, n) of the cell that `options` names; with
`stop` by the stop-gradients that make the gradient e-prop's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Forward = Callable[[dict[str, Any], tuple[Any, ...], Any, bool], Any]


def _seen(h: Any, stop: bool) -> Any:
    return jax.lax.stop_gradient(h) if stop else h


def leaky(options: dict[str, Any], p: tuple[Any, ...], x: Any, stop: bool) -> Any:
    """The rate cell; options: leak, nonlinearity."""
    w_ih, w_hh, b_ih, b_hh = p
    leak = options["leak"]
    phi = {"tanh": jnp.tanh, "relu": jax.nn.relu}[options.get("nonlinearity", "tanh")]
    pre = x @ w_ih.T + (b_ih + b_hh)

    def step(h: Any, pre_t: Any) -> tuple[Any, Any]:
        new = phi(pre_t + _seen(h, stop) @ w_hh.T)
        h = new if leak == 1.0 else (1 - leak) * h + leak * new
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[1], w_hh.shape[0]), x.dtype), pre)[1]


def gru(options: dict[str, Any], p: tuple[Any, ...], x: Any, stop: bool) -> Any:
    """Gates r, z, n as in torch."""
    w_ih, w_hh, b_ih, b_hh = p

    def step(h: Any, pre_t: Any) -> tuple[Any, Any]:
        xr, xz, xn = jnp.split(pre_t, 3, -1)
        hr, hz, hn = jnp.split(_seen(h, stop) @ w_hh.T + b_hh, 3, -1)
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        h = (1 - z) * jnp.tanh(xn + r * hn) + z * h
        return h, h

    zero = jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
    return jax.lax.scan(step, zero, x @ w_ih.T + b_ih)[1]


def lstm(options: dict[str, Any], p: tuple[Any, ...], x: Any, stop: bool) -> Any:
    """Gates i, f, g, o as in torch."""
    w_ih, w_hh, b_ih, b_hh = p

    def step(state: Any, pre_t: Any) -> tuple[Any, Any]:
        h, c = state
        i, f, g, o = jnp.split(pre_t + _seen(h, stop) @ w_hh.T, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
    return jax.lax.scan(step, (zero, zero), x @ w_ih.T + (b_ih + b_hh))[1]


def spike_function(v_th: float, gamma: float) -> Callable[[Any], Any]:
    """Heaviside step whose derivative is the triangle (gamma/v_th) max(0, 1 - |u|/v_th)."""

    @jax.custom_jvp
    def spike(u: Any) -> Any:
        return (u > 0).astype(u.dtype)

    @spike.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (u,), (du,) = primals, tangents
        return spike(u), (gamma / v_th) * jnp.maximum(0, 1 - jnp.abs(u) / v_th) * du

    return spike


def alif(options: dict[str, Any], p: tuple[Any, ...], x: Any, stop: bool) -> Any:
    """ALIF, or with beta 0 LIF; options: alpha, rho, beta, v_th, gamma."""
    w_ih, w_hh = p
    alpha, rho, beta, v_th = (options[k] for k in ("alpha", "rho", "beta", "v_th"))
    spike = spike_function(v_th, options["gamma"])

    def step(state: Any, pre_t: Any) -> tuple[Any, Any]:
        z, v, a = state
        seen = _seen(z, stop)
        v = alpha * v + pre_t + seen @ w_hh.T - v_th * seen
        if beta:
            a = rho * a + z
        z = spike(v - (v_th + beta * a if beta else v_th))
        return (z, v, a), z

    zero = jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
    return jax.lax.scan(step, (zero, zero, zero), x @ w_ih.T)[1]


CELLS: dict[str, Forward] = {
    "RNN": leaky, "GRU": gru, "LSTM": lstm, "ALIF": alif, "LIF": alif,
}  # fmt: skip
