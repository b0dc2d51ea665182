"""Cases of the ALIF and LIF recurrences: arguments and float64 results of their operations, for
tests against the reference, in memory and as a file for csrc_tests/test_alif.cpp."""

import struct
from pathlib import Path

import torch
from leaky_cases import ELEMENTS, PERSISTENT, RANDOM, STEPWISE, array, tolerance

from rtrl_ext.reference import alif as reference
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, HOP, LOCAL, STATE

NAMES = ("alif_forward", "alif_backward")
COLUMNS = 3
V_TH, GAMMA = 0.5, 0.3
POLICIES = [  # policy, window, decay
    (FULL, 0, 0.0), (FULL, 2, 0.0), (LOCAL, 0, 0.0), (LOCAL, 2, 0.5), (LOCAL, 0, 0.5),
    (DIAGONAL, 0, 0.0), (HOP, 0, 0.0), (STATE, 0, 0.0),
]  # fmt: skip
# lif, scaling, reset, surrogate, refractory
VARIANTS = [
    (False, False, 0, 0, 0),
    (True, False, 0, 1, 2),
    (False, True, 1, 2, 1),
    (True, True, 1, 0, 0),
    (False, True, 0, 1, 3),
]


class Problem:
    """Operands of one call; with ``shared``, the weights and constants have a leading 1.

    All are multiples of 1/8, and the factors powers of 1/2, so that a few steps are without
    rounding in float32 and a spike can't hinge on it.
    """

    def __init__(self, shape, dtype, variant, shared=False, ragged=False, coarse=True):
        self.dtype, self.coarse = dtype, coarse
        self.L, self.T, self.B, self.n = shape
        self.lif, self.scaling, self.reset, self.surrogate, self.refractory = variant
        self.generator = torch.Generator().manual_seed(1)
        lead, B, n = 1 if shared else self.L, self.B, self.n
        self.pre = self.normal(self.L, self.T, B, n) + 0.25
        self.w = self.normal(lead, n, n) * torch.where(self.normal(lead, n, n).abs() > 1, 1, 0)
        self.z0 = (self.normal(lead, B, n) > 0.5).to(dtype)
        self.v0, self.a0 = self.normal(lead, B, n), self.normal(lead, B, n).abs()
        self.count0 = torch.where(self.z0 > 0, self.refractory + 1.0, 0.0).to(dtype)
        self.count0[..., ::3] = float(self.refractory)
        pick = self.normal(lead, n) > 0
        self.alpha = torch.where(pick, 0.5, 0.75).to(dtype)
        self.rho = torch.where(pick, 0.75, 0.5).to(dtype)
        self.beta = torch.where(self.normal(lead, n) > 0, 0.25, 0.125).to(dtype)
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, self.T + 1, (self.B,), generator=self.generator)

    def normal(self, *size):
        x = torch.randn(*size, generator=self.generator, dtype=torch.float64)
        return (torch.round(8 * x) / 8 if self.coarse else x).to(self.dtype)

    def forward(self, want_states):
        a0, rho, beta = (None,) * 3 if self.lif else (self.a0, self.rho, self.beta)
        count = self.count0 if self.refractory else None
        return (
            self.pre, self.z0, self.v0, a0, count, self.w, self.alpha, rho, beta, self.lengths,
            V_TH, GAMMA, self.scaling, self.reset, self.surrogate, self.refractory, want_states,
        )  # fmt: skip

    def backward(self, values, policy, window, decay, plain):
        z, psi, v = values[:3]
        L, B, n = self.L, self.B, self.n
        gz, gv, ga = self.normal(L, self.T, B, n), self.normal(L, B, n), self.normal(L, B, n)
        rho, beta = (None, None) if self.lif else (self.rho, self.beta)
        return (
            gz, None if plain else gv, None if plain or self.lif else ga, z, psi, v, self.z0,
            self.v0, self.w, self.alpha, rho, beta, self.lengths, V_TH, self.scaling, self.reset,
            policy, 0.3 if policy == HOP else 0.0, window, decay, not plain,
        )  # fmt: skip

    def calls(self):
        """(name, arguments, float64 results) of both operations, for every policy."""
        for want in (False, True):
            arguments = self.forward(want)
            values = expected("alif_forward", arguments)
            yield "alif_forward", arguments, values
        values = [x.to(self.dtype) for x in values]
        for policy, window, decay in POLICIES:
            for plain in (False, True)[: 2 if policy == FULL else 1]:
                arguments = list(self.backward(values, policy, window, decay, plain))
                if policy == DIAGONAL:
                    arguments[0] = None
                results = expected("alif_backward", arguments)
                if policy == LOCAL and window:
                    arguments[8] = None
                yield "alif_backward", tuple(arguments), results


def expected(name, arguments):
    """The reference's results in float64."""
    wide = (
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments
    )
    return getattr(reference, name)(*wide)


def small_problems(small, dtype=torch.float64):
    """Tails everywhere; all variants and policies; ragged rows. None in half precision, which the
    operations refuse.

    ``small``: fewer of them.
    """
    if dtype in ELEMENTS[2:]:
        return
    for variant in VARIANTS:
        yield Problem((2, 3, 3, 6), dtype, variant, ragged=True)
    yield Problem((1, 1, 1, 1), dtype, VARIANTS[4])
    yield Problem((2, 2, 5, 8), dtype, VARIANTS[2], shared=True, ragged=True)
    if not small:
        for variant in VARIANTS[:3]:
            yield Problem((1, 3, 5, 33), dtype, variant, ragged=True)
        yield Problem((3, 2, 2, 40), dtype, VARIANTS[4], ragged=True)


def write(path: Path, problems, strategies=(PERSISTENT, STEPWISE), orders=((RANDOM, 1),)) -> int:
    """Writes the cases of ``problems`` for csrc_tests/test_alif.cpp; returns how many."""
    count = 0
    with open(path, "wb") as stream:
        for problem in problems:
            for name, arguments, results in problem.calls():
                backward = name == "alif_backward"
                policy, mu, window, decay = arguments[-5:-1] if backward else (FULL, 0.0, 0, 0.0)
                inputs = arguments[: 12 if backward else 9]
                scale = max(1.0, *(float(x.abs().max()) for x in results if x.numel()))
                lengths = problem.lengths
                ragged = b"" if lengths is None else lengths.numpy().tobytes()
                for strategy in (COLUMNS,) if policy in (LOCAL, DIAGONAL) else strategies:
                    for order, seed in orders:
                        stream.write(
                            struct.pack(
                                "<17q5d", NAMES.index(name), strategy, order, seed, 90, problem.L,
                                problem.T, problem.B, problem.n, policy, window, problem.scaling,
                                problem.reset, problem.surrogate, problem.refractory, len(inputs),
                                ELEMENTS.index(problem.dtype), mu, decay, V_TH, GAMMA,
                                tolerance(problem.dtype, problem.T, problem.n) * scale,
                            )
                        )  # fmt: skip
                        stream.write(struct.pack("<q", len(ragged) // 8) + ragged)
                        for x in (*inputs, *results):
                            stream.write(array(x))
                        count += 1
    return count
