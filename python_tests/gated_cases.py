"""Cases of the GRU and LSTM recurrences: arguments and float64 results of their operations, for
tests against the reference, in memory and as a file for csrc_tests/test_gated.cpp."""

import struct
from pathlib import Path

import torch
from leaky_cases import ELEMENTS, PERSISTENT, RANDOM, STEPWISE, array, tolerance

from rtrl_ext._dtypes import computed
from rtrl_ext.reference import gru, lstm
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, LOCAL

CELLS = {"gru": (3, 4, 1), "lstm": (4, 5, 2)}  # gates, values kept, states
POLICIES = [  # policy, window, decay
    (FULL, 0, 0.0), (FULL, 2, 0.0), (LOCAL, 0, 0.0), (LOCAL, 2, 0.0), (LOCAL, 0, 0.5),
    (DIAGONAL, 0, 0.0),
]  # fmt: skip
KINDS = ("forward", "backward", "forward_jvp", "backward_jvp")
NAMES = [f"{cell}_{kind}" for cell in CELLS for kind in KINDS]
COLUMNS = 3

#: Positions of the arguments, and of the results, that are float32 beside half precision.
COMPUTED = {
    "gru_forward": ((), (1,)),
    "gru_backward": ((3,), (2,)),
    "gru_forward_jvp": ((3,), (1,)),
    "gru_backward_jvp": ((3, 6, 8), ()),
    "lstm_forward": ((), (1,)),
    "lstm_backward": ((3,), (3, 4)),
    "lstm_forward_jvp": ((3,), (1,)),
    "lstm_backward_jvp": ((3, 5, 7, 8), ()),
}


def reference(name):
    """The definition in plain PyTorch of a forward or backward pass."""
    return getattr(gru if name.startswith("gru") else lstm, name)


class Problem:
    """Random operands; ``shape`` is (L, lead of the weights, T, B, n)."""

    def __init__(self, cell, shape, ragged, dtype=torch.float64):
        self.cell, self.dtype = cell, dtype
        self.L, self.lead, self.T, self.B, self.n = shape
        self.gates, self.kept, self.states = CELLS[cell]
        self.generator = torch.Generator().manual_seed(3)
        L, T, B, n = self.L, self.T, self.B, self.n
        self.pre = self.new(L, T, B, self.gates * n)
        self.first = [self.new(L if s else 1, B, n) for s in range(self.states)]
        self.w = self.rounded(self.new(self.lead, self.gates * n, n) / n**0.5)
        self.bias = [self.new(self.lead, n)] if cell == "gru" else []
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, T + 1, (B,), generator=self.generator)

    def rounded(self, x):
        return x.to(self.dtype).double()

    def new(self, *size):
        return self.rounded(torch.randn(*size, generator=self.generator, dtype=torch.float64))

    def calls(self):
        """(name, arguments, float64 results) of all operations, for every policy."""
        for name, arguments, results in self._calls():
            yield name, tuple(self._as_given(name, i, a) for i, a in enumerate(arguments)), results

    def _as_given(self, name, i, a):
        """An argument as the operation gets it."""
        if not isinstance(a, torch.Tensor) or not a.is_floating_point():
            return a
        return a.to(computed(self.dtype) if i in COMPUTED[name][0] else self.dtype)

    def _back(self, gy, final, y, aux, w, first, *options):
        """Arguments of a backward pass."""
        saved = (y, aux, first[0]) if self.cell == "gru" else (aux, first[1])
        return (gy, *final, *saved, w, self.lengths, *options)

    def _calls(self):
        L, T, B, n = self.L, self.T, self.B, self.n
        forward = (self.pre, *self.first, self.w, *self.bias, self.lengths)
        results = reference(f"{self.cell}_forward")(*forward)
        yield f"{self.cell}_forward", forward, results
        name, (y, aux, *_) = f"{self.cell}_backward", results
        y, aux = self.rounded(y), aux.to(computed(self.dtype)).double()
        for policy, window, decay in POLICIES:
            for plain in (False, True)[: 2 if policy == FULL else 1]:
                final = [None if plain else self.new(L, B, n) for _ in range(self.states)]
                signals = (None if policy == DIAGONAL else self.new(L, T, B, n), final, y, aux)
                options = (self.first, policy, window, decay, not plain)
                results = reference(name)(*self._back(*signals, self.w, *options))
                w = None if policy == LOCAL and window else self.w
                yield name, self._back(*signals, w, *options), results
        yield from self._tangents()

    def _passes(self, pre, *rest):
        """Both passes from everything that a tangent may go through: y, aux, final states; delta,
        gradients of the first states, adjoints."""
        first, rest = rest[: self.states], rest[self.states :]
        (w, *bias), rest = rest[: 1 + len(self.bias)], rest[1 + len(self.bias) :]
        gy, *final = rest
        y, aux, *ends = reference(f"{self.cell}_forward")(pre, *first, w, *bias, self.lengths)
        back = self._back(gy, final, y, aux, w, first, *POLICIES[0], True)
        return (y, aux, *ends), reference(f"{self.cell}_backward")(*back)

    def _tangents(self):
        """Forward mode through both passes of the reference, in all operands. What the operations
        take (``du``, ``dgy``) holds a tangent of w too; it is drawn first, so that it is exact in
        half precision, and that of pre or gy is what remains."""
        L, T, B, n = self.L, self.T, self.B, self.n
        primal = [self.pre, *self.first, self.w, *self.bias]
        gy, final = self.new(L, T, B, n), [self.new(L, B, n) for _ in range(self.states)]
        dw = self.new(self.lead, self.gates * n, n) / n**0.5
        dfirst = [self.new(1, B, n) for _ in self.first]
        dbias = [self.new(self.lead, n) for _ in self.bias]
        if self.cell == "gru" and self.dtype != torch.float64:
            dw[:, 2 * n :] = 0  # so that du of the product m is the bias's
        (y, aux, *_), (delta, *_) = self._passes(*primal, gy, *final)
        before = torch.cat([self.first[0].expand(L, B, n).unsqueeze(1), y[:, :-1]], 1)
        moved = torch.einsum("ltbj,lij->ltbi", before, dw.expand(L, -1, -1))
        if self.cell == "gru":
            last = (moved[..., 2 * n :] + dbias[0][:, None, None]).expand(L, T, B, n)
            du = torch.cat([self.new(L, T, B, 3 * n), last], -1)
            dpre = du[..., : 3 * n].clone()
            dpre[..., : 2 * n] -= moved[..., : 2 * n]
        else:
            du = self.new(L, T, B, 4 * n)
            dpre = du - moved
        through = torch.cat([delta[..., : 2 * n], delta[..., 3 * n :]], -1)
        if self.cell == "lstm":
            through = delta
        sent = torch.einsum("ltbi,lij->ltbj", through, dw.expand(L, -1, -1))
        later = torch.cat([sent[:, 1:], torch.zeros_like(sent[:, :1])], 1)
        if self.lengths is not None:  # a row that has ended takes nothing in
            later = later * (torch.arange(T)[:, None] < self.lengths)[None, :, :, None]
        dgy, dfinal = self.new(L, T, B, n), [self.new(L, B, n) for _ in final]
        (values, back), (moving, dback) = torch.func.jvp(
            self._passes,
            (*primal, gy, *final),
            (dpre, *self._expanded(dfirst), dw, *dbias, dgy - later, *dfinal),
        )
        y, aux, lam = *values[:2], back[1 + self.states]
        dy, daux = moving[:2]
        if self.cell == "gru":
            saved = (y, aux, self.first[0])
            whole = (dy, daux, dfirst[0], *saved, lam)
        else:
            saved = (aux, self.first[1])
            whole = (daux, dfirst[1], *saved, lam, back[-1])
        cell = (self.w, self.lengths)
        yield f"{self.cell}_forward_jvp", (du, *dfirst, *saved, *cell), moving
        _, dh0, *dc0 = dback[: 1 + self.states]
        results = (dback[0], dh0 - sent[:, 0], *dc0)
        yield f"{self.cell}_backward_jvp", (dgy, *dfinal, *whole, *cell), results

    def _expanded(self, dfirst):
        return [d.expand(f.shape) for d, f in zip(dfirst, self.first, strict=True)]


def small_problems(small, dtype=torch.float64):
    """Tails everywhere; both cells, every policy; ragged rows.

    ``small``: fewer of them, and of half precision what is different there.
    """
    shapes = [(1, 1, 1, 1, 1), (2, 2, 3, 3, 6), (2, 1, 2, 5, 8)]
    if not small:
        shapes += [(1, 1, 3, 5, 33), (3, 3, 2, 2, 40)]
    elif dtype in ELEMENTS[2:]:
        shapes = [(2, 2, 3, 3, 6)]
    for shape in shapes:
        for cell in CELLS:
            yield Problem(cell, shape, shape[2] > 1, dtype)


def write(path: Path, problems, strategies=(PERSISTENT, STEPWISE), orders=((RANDOM, 1),)) -> int:
    """Writes the cases of ``problems`` for csrc_tests/test_gated.cpp; returns how many."""
    count = 0
    with open(path, "wb") as stream:
        for problem in problems:
            for name, arguments, results in problem.calls():
                backward = name.endswith("_backward")
                policy, window, decay = arguments[-4:-1] if backward else POLICIES[0]
                inputs = arguments[: -5 if backward else -1]
                lengths = problem.lengths
                ragged = b"" if lengths is None else lengths.numpy().tobytes()
                sizes = (problem.L, problem.T, problem.B, problem.n)
                for strategy in strategies if policy == FULL else (COLUMNS,):
                    for order, seed in orders:
                        stream.write(
                            struct.pack(
                                "<13q2d", NAMES.index(name), strategy, order, seed, 90, *sizes,
                                policy, window, len(inputs), ELEMENTS.index(problem.dtype), decay,
                                tolerance(problem.dtype, problem.T, problem.n),
                            )
                        )  # fmt: skip
                        stream.write(struct.pack("<q", len(ragged) // 8) + ragged)
                        for x in (*inputs, *[*results, *[None] * 5][:5]):
                            stream.write(array(x))
                        count += 1
    return count
