"""Cases of the LeakyRNN recurrence: arguments of the four operations, for tests against the
reference, in memory and as a file for csrc_tests/test_leaky.cpp."""

import struct
from pathlib import Path

import torch

from rtrl_ext._dtypes import computed
from rtrl_ext._kernels import Kernels
from rtrl_ext.reference import leaky_rnn as reference

PERSISTENT, STEPWISE = 1, 2
FORWARD, REVERSED, RANDOM = range(3)
NAMES = Kernels._fields
CELLS = [(0, False), (0, True), (1, False)]
POLICIES = [  # policy, mu, window, decay
    (0, 0.0, 0, 0.0), (0, 0.0, 2, 0.0), (1, 0.0, 0, 0.0), (1, 0.0, 0, 0.5), (2, 0.0, 0, 0.0),
    (3, 0.3, 0, 0.0), (4, 0.3, 0, 0.0),
]  # fmt: skip


#: Positions of the arguments, and of the results, that are float32 beside half precision.
COMPUTED = {
    "leaky_forward": ((4,), (1,)),
    "leaky_backward": ((1, 4, 6), (3,)),
    "leaky_forward_jvp": ((3, 5, 9), (1,)),
    "leaky_backward_jvp": ((2, 4, 6, 7, 10), (3,)),
}
ELEMENTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tolerance(dtype, steps, n):
    """Of results of order 1: a part of sqrt(T n) roundings, so that in half precision it is small
    against what tells one rule from another."""
    if dtype == torch.float64:
        return 1e-10
    eps = torch.finfo(dtype).eps
    return eps * max(2.0, (0.25 if eps > 1e-4 else 1.0) * (steps * n) ** 0.5)


class Problem:
    """Random operands; ``shape`` is (L, lead of the weights, T, B, n), ``cell`` (form, unit)."""

    def __init__(self, shape, cell, act, ragged, dtype=torch.float64):
        self.L, lead, self.T, self.B, self.n = shape
        (self.form, self.unit), self.act = cell, act
        self.generator = torch.Generator().manual_seed(3)
        self.dtype = dtype
        self.w = self.rounded(self.new(lead, self.n, self.n) / self.n**0.5)
        self.leak = torch.ones(1, self.n, dtype=torch.float64)
        if not self.unit:
            uniform = torch.rand(lead, self.n, generator=self.generator, dtype=torch.float64)
            self.leak = (0.1 + 0.8 * uniform).to(computed(dtype)).double()
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, self.T + 1, (self.B,), generator=self.generator)
        self.options = (self.lengths, self.form, act, self.unit)

    def rounded(self, x):
        return x.to(self.dtype).double()

    def new(self, *size):
        return self.rounded(torch.randn(*size, generator=self.generator, dtype=torch.float64))

    def calls(self):
        """(name, arguments) of all four operations, for every policy."""
        for name, arguments in self._calls():
            wide = COMPUTED[name][0]
            yield (
                name,
                tuple(
                    a.to(computed(self.dtype) if i in wide else self.dtype)
                    if isinstance(a, torch.Tensor) and a.is_floating_point()
                    else a
                    for i, a in enumerate(arguments)
                ),
            )

    def _calls(self):
        L, T, B, n = self.L, self.T, self.B, self.n
        cell = (self.w, self.leak, *self.options)
        y0, s0 = self.new(1, B, n), self.new(L, B, n)
        forward = (self.new(L, T, B, n), y0, s0, *cell)
        yield "leaky_forward", forward
        y, aux, _ = reference.leaky_forward(*forward)
        for policy in POLICIES:
            gaux = None if self.unit else self.new(L, T, B, n)
            signals = (self.new(L, T, B, n), gaux, self.new(L, B, n))
            yield "leaky_backward", (*signals, y, aux, *cell, *policy, True)
        exact = (self.new(L, T, B, n), None, None, y, aux, *cell, *POLICIES[0])
        delta, _, _, lam = reference.leaky_backward(*exact, True)
        yield "leaky_backward", (*exact, False)
        for dleak in (None,) if self.unit else (None, self.new(1, n)):
            tangents = (self.new(L, T, B, n), self.new(1, B, n), self.new(1, B, n), dleak)
            moved = (*tangents, y, aux, y0, s0, *cell)
            yield "leaky_forward_jvp", (*moved, True)
            dy, daux, _, _ = reference.leaky_forward_jvp(*moved, False)
            back = (self.new(L, T, B, n), self.new(L, B, n), dleak, dy, daux, y, aux, lam, delta)
            yield "leaky_backward_jvp", (*back, *cell, True)


def small_problems(small, dtype=torch.float64):
    """Tails everywhere; every cell, activation and policy; ragged rows.

    ``small``: fewer of them, and of half precision what is different there.
    """
    shapes = [(1, 1, 1, 1, 1), (2, 2, 3, 3, 6), (2, 1, 2, 5, 8)]
    if not small:
        shapes += [(1, 1, 3, 5, 33), (3, 3, 2, 2, 40)]
    elif dtype in ELEMENTS[2:]:
        yield Problem((2, 2, 3, 3, 6), CELLS[0], 0, True, dtype)
        return
    for shape in shapes:
        for number, cell in enumerate(CELLS):
            yield Problem(shape, cell, (0, 2, 1)[number], shape[2] > 1, dtype)
    yield Problem((1, 1, 2, 3, 5), CELLS[0], 3, True, dtype)


def expected(name, arguments):
    """The reference's results in float64."""
    wide = [
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments
    ]
    return getattr(reference, name)(*wide)


def array(x):
    """One array in the form of csrc_tests/cases.h."""
    if x is None or x.dim() == 1:  # what isn't kept
        return struct.pack("<2q", -1, 0)
    lead = 1 if x.shape[0] != 1 else 0
    return struct.pack("<2q", lead, x.numel()) + x.double().contiguous().numpy().tobytes()


def write(path: Path, problems, strategies=(PERSISTENT, STEPWISE), orders=((RANDOM, 1),)) -> int:
    """Writes the cases of ``problems`` for csrc_tests/test_leaky.cpp; returns how many."""
    count = 0
    with open(path, "wb") as stream:
        for problem in problems:
            for name, arguments in problem.calls():
                kernel = NAMES.index(name)
                tensors = [a for a in arguments if isinstance(a, torch.Tensor) or a is None]
                policy, mu, window, decay = (0, 0.0, 0, 0.0)
                if kernel == 1:
                    policy, mu, window, decay = arguments[-5:-1]
                # lengths is the first that has no leading dimension and is no number
                inputs = tensors[: {0: 5, 1: 7, 2: 10, 3: 11}[kernel]]
                if kernel == 2:
                    inputs = [x for i, x in enumerate(inputs) if i != 6]  # y0 is not used
                results = [*expected(name, arguments), None, None][:4]
                lengths = problem.lengths
                for strategy in strategies:
                    columns = kernel == 1 and policy in (1, 2)
                    for order, seed in orders:
                        stream.write(
                            struct.pack(
                                "<16q3d", kernel, 3 if columns else strategy, order, seed, 90,
                                problem.L, problem.T, problem.B, problem.n, problem.form,
                                problem.act, problem.unit, policy, window, len(inputs),
                                ELEMENTS.index(problem.dtype), mu, decay,
                                tolerance(problem.dtype, problem.T, problem.n),
                            )
                        )  # fmt: skip
                        ragged = b"" if lengths is None else lengths.numpy().tobytes()
                        stream.write(struct.pack("<q", len(ragged) // 8) + ragged)
                        for x in inputs:
                            stream.write(array(x))
                        for x in results:
                            stream.write(array(x))
                        count += 1
    return count
