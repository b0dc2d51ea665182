"""The problem of the spiking suite: data on which rounding decides no spike.

NumPy only: the JAX worker imports this file in another environment.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .problem import Case

#: The size of the speed table.
SPIKING_CASE = Case(n=100, m=50, B=32, T=200)

#: The defaults of `rtrl_ext.ALIF`, and those of LIF, which is ALIF with beta 0.
CONSTANTS: dict[str, dict[str, float]] = {
    name: {
        "alpha": math.exp(-1 / 20),
        "rho": math.exp(-1 / 200),
        "beta": beta,
        "v_th": 1.0,
        "gamma": 0.3,
    }
    for name, beta in (("ALIF", 0.184), ("LIF", 0.0))
}
#: Least distance of a unit from its threshold, at any time, for either cell. Contestants add in
#: different orders in float32; closer than this one may spike where another does not, and then
#: neither is wrong.
MARGIN = 5e-6
TRIES = 200


def _draw(case: Case, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    n, m, B, T = case.n, case.m, case.B, case.T
    w_hh = rng.standard_normal((n, n), dtype=np.float32) * np.float32(n**-0.5)
    np.fill_diagonal(w_hh, 0.0)
    return {
        "weight_ih": rng.standard_normal((n, m), dtype=np.float32) * np.float32(m**-0.5),
        "weight_hh": w_hh,
        "x": (rng.random((T, B, m)) < 0.1).astype(np.float32),
        "gy": rng.standard_normal((T, B, n), dtype=np.float32),
    }


def simulate(data: dict[str, Any], cell: str) -> tuple[np.ndarray, np.ndarray]:
    """Spikes and distances v - A from the threshold, both (T, B, n), in float64."""
    c = CONSTANTS[cell]
    x, w_hh = data["x"].astype(np.float64), data["weight_hh"].astype(np.float64)
    pre = x @ data["weight_ih"].astype(np.float64).T
    z = v = a = np.zeros(pre.shape[1:])
    spikes, distances = [], []
    for pre_t in pre:
        v = c["alpha"] * v + pre_t + z @ w_hh.T - c["v_th"] * z
        a = c["rho"] * a + z
        distances.append(v - c["v_th"] - c["beta"] * a)
        z = (distances[-1] > 0).astype(np.float64)
        spikes.append(z)
    return np.stack(spikes), np.stack(distances)


@functools.lru_cache(maxsize=4)
def make_spiking_data(case: Case) -> dict[str, Any]:
    """Weights without autapses, Poisson inputs, output gradients; float32 NumPy arrays.

    Weights (n, m) and (n, n), x (T, B, m), gy (T, B, n). The first of the seeds 0, 1, ... that
    keeps `MARGIN` for both cells; RuntimeError if none of `TRIES` does.
    """
    for seed in range(TRIES):
        data = _draw(case, seed)
        if all(np.abs(simulate(data, cell)[1]).min() > MARGIN for cell in CONSTANTS):
            return data
    raise RuntimeError(f"no seed below {TRIES} keeps {case.label} {MARGIN} from the threshold")
