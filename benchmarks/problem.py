"""The problems that every contestant solves: sizes, seeded data, FLOP floors and bounds.

NumPy only: the JAX worker imports this file in another environment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SGEMM_SIZE = 2048
SGEMM_FLOPS = 2 * SGEMM_SIZE**3


@dataclass(frozen=True)
class Case:
    """Sizes of one problem: hidden `n`, inputs `m`, batch `B`, time steps `T`, gates `G`."""

    n: int
    m: int
    B: int
    T: int
    G: int = 1

    @property
    def label(self) -> str:
        return f"n={self.n} B={self.B} T={self.T} m={self.m}"

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


#: The columns of the speed table.
COLUMNS: dict[str, Case] = {
    "64": Case(64, 64, 32, 100),
    "128": Case(128, 64, 32, 100),
    "256": Case(256, 64, 32, 100),
    "batch": Case(128, 28, 256, 28),
}


def bptt_flops(case: Case) -> int:
    """Multiply-adds (times 2) of one BPTT gradient's GEMMs, x without gradient."""
    n, m = case.n, case.m
    return 2 * case.T * case.B * case.G * (2 * n * (n + m) + n * n)


def local_flops(case: Case) -> int:
    """The same without the backward recurrent GEMM (EProp, SnAp1, Immediate)."""
    n, m = case.n, case.m
    return 2 * case.T * case.B * case.G * 2 * n * (n + m)


def hvp_flops(case: Case) -> int:
    """Per direction: the GEMMs of two gradients."""
    return 2 * bptt_flops(case)


#: Bounds as multiples of the floor, one per column.
BOUNDS: dict[str, dict[str, float]] = {
    "bptt": {"64": 1.9, "128": 1.5, "256": 1.3, "batch": 1.5},
    "local": {"64": 1.9, "128": 1.6, "256": 1.35, "batch": 1.6},
    "hvp": {"128": 1.6, "256": 1.6, "batch": 1.6},
    "hvp1": {"64": 3.0, "128": 3.0, "256": 3.0, "batch": 3.0},
    "gated bptt": {"64": 2.0, "128": 1.5, "256": 1.5, "batch": 1.5},
    "gated local": {"64": 1.6, "128": 1.6, "256": 1.6, "batch": 1.6},
    "gated hvp": {"64": 1.6, "128": 1.6, "256": 1.6, "batch": 1.6},
}
#: Spiking cells, as a multiple of the floor, under every rule.
SPIKING_BOUND = 2.0
#: MDGL and ModProp: at most this multiple of the time of BPTT.
HOP_BOUND = 1.3
#: At least this many times faster than a peer.
TIMES_FASTER: dict[tuple[str, str], float] = {
    ("GRU", "nn.GRU"): 1.4,
    ("LSTM", "nn.LSTM"): 1.0,
    ("GRU", "braintrace"): 20.0,
    ("ALIF", "snnTorch"): 10.0,
    ("ALIF", "norse"): 10.0,
}
#: Gain from a second thread: at least this share of sgemm's own.
THREADS_BOUND = 0.9


def make_data(case: Case, seed: int = 0) -> dict[str, Any]:
    """Weights as nn.RNN initialises them, inputs and output gradients; float32 NumPy arrays.

    Weights (G n, m) and (G n, n), biases (G n,), x (T, B, m), gy (T, B, n).
    """
    rng = np.random.default_rng(seed)
    n, m, B, T, rows = case.n, case.m, case.B, case.T, case.G * case.n
    bound = n**-0.5

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    return {
        "weight_ih": uniform(rows, m),
        "weight_hh": uniform(rows, n),
        "bias_ih": uniform(rows),
        "bias_hh": uniform(rows),
        "x": rng.standard_normal((T, B, m), dtype=np.float32),
        "gy": rng.standard_normal((T, B, n), dtype=np.float32),
    }
