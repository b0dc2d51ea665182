"""The compiled GRU and LSTM kernels equal the plain PyTorch reference, at shapes with tails."""

import pytest
import torch
from kernel_checks import SHAPES, chosen, every_instruction_set, run_under, same

from rtrl_ext.reference import gru, lstm
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, LOCAL

ops = torch.ops.rtrl_ext
CELLS = {"gru": (3, 4, 1), "lstm": (4, 5, 2)}  # gates, values kept, states


class Problem:
    """Random operands of one call; with ``shared``, the weights have a leading 1."""

    def __init__(self, cell, shape, dtype, shared=False, ragged=False):
        self.cell, self.dtype = cell, dtype
        self.L, self.T, self.B, self.n = shape
        self.gates, self.kept, self.states = CELLS[cell]
        self.generator = torch.Generator().manual_seed(1)
        lead = 1 if shared else self.L
        n = self.n
        self.pre = self.normal(self.L, self.T, self.B, self.gates * n)
        self.w = self.normal(lead, self.gates * n, n) / n**0.5
        self.bias = self.normal(lead, n)
        self.first = [self.normal(lead, self.B, n) for _ in range(self.states)]
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, self.T + 1, (self.B,), generator=self.generator)

    def normal(self, *size):
        return torch.randn(*size, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def forward(self):
        if self.cell == "gru":
            return "gru_forward", (self.pre, *self.first, self.w, self.bias, self.lengths)
        return "lstm_forward", (self.pre, *self.first, self.w, self.lengths)

    def backward(self, y, aux, policy, window, plain, decay=0.0):
        L, B, n = self.L, self.B, self.n
        gy = self.normal(L, self.T, B, n)
        final = [None if plain else self.normal(L, B, n) for _ in range(self.states)]
        if self.cell == "gru":
            saved = (y, aux, self.first[0], self.w)
        else:
            saved = (aux, self.first[1], self.w)
        return f"{self.cell}_backward", (
            gy,
            *final,
            *saved,
            self.lengths,
            policy,
            window,
            decay,
            not plain,
        )


def reference(name):
    return getattr(gru if name.startswith("gru") else lstm, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, cell, dtype):
    for ragged, shared in ((False, False), (True, False), (False, True)):
        name, arguments = Problem(cell, shape, dtype, shared, ragged).forward()
        same(getattr(ops, name)(*arguments), reference(name)(*arguments), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("policy", [FULL, LOCAL, DIAGONAL])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape, cell, policy, dtype):
    for ragged, shared, window, plain, decay in (
        (False, False, 0, True, 0.0),
        (True, False, 2, False, 0.5),
        (False, True, 0, False, 0.0),
        (True, True, 1, False, 0.9),
    ):
        p = Problem(cell, shape, dtype, shared, ragged)
        name, arguments = p.forward()
        y, aux, *_ = reference(name)(*arguments)
        window = 0 if policy == DIAGONAL else window
        name, arguments = p.backward(y, aux, policy, window, plain, decay)
        same(getattr(ops, name)(*arguments), reference(name)(*arguments), dtype)
        arguments = (None, *arguments[1:])
        same(getattr(ops, name)(*arguments), reference(name)(*arguments), dtype)


def moved(before, dw):
    """What a tangent of the recurrent weights adds to every step's products."""
    return torch.einsum("ltbj,lij->ltbi", before, dw)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tangents(shape, cell, ragged):
    """Against torch's forward mode through the reference, both passes, in every operand."""
    dtype = torch.float64
    p = Problem(cell, shape, dtype, ragged=ragged)
    L, T, B, n = shape
    pre, *first = p.forward()[1][: 1 + p.states]
    w, bias = p.w, p.bias
    primal = [pre, *first, w, bias]
    direction = [p.normal(*x.shape) for x in primal]
    gy, final = p.normal(L, T, B, n), [p.normal(L, B, n) for _ in range(p.states)]
    dgy, dfinal = p.normal(L, T, B, n), [p.normal(L, B, n) for _ in final]
    module = gru if cell == "gru" else lstm

    def passes(pre, *rest):
        *first, w, bias, gy = rest[: p.states + 3]
        final = rest[p.states + 3 :]
        if cell == "gru":
            y, aux, h_n = gru.gru_forward(pre, *first, w, bias, p.lengths)
            saved = (y, aux, first[0], w)
            ends = (h_n,)
        else:
            y, aux, *ends = lstm.lstm_forward(pre, *first, w, p.lengths)
            saved = (aux, first[1], w)
        back = getattr(module, f"{cell}_backward")(
            gy, *final, *saved, p.lengths, FULL, 0, 0.0, True
        )
        return (y, aux, *ends), back

    (values, back), (tangents, dback) = torch.func.jvp(
        passes, (*primal, gy, *final), (*direction, dgy, *dfinal)
    )
    y, aux = values[:2]
    dpre, *dfirst, dw, dbias = direction
    before = torch.cat([first[0].unsqueeze(1), y[:, :-1]], 1)
    if cell == "gru":
        extra = moved(before, dw)
        last = extra[..., 2 * n :] + dbias[:, None, None]
        du = torch.cat([dpre[..., : 2 * n] + extra[..., : 2 * n], dpre[..., 2 * n :], last], -1)
        got = ops.gru_forward_jvp(du, *dfirst, y, aux, first[0], w, p.lengths)
    else:
        du = dpre + moved(before, dw)
        got = ops.lstm_forward_jvp(du, *dfirst, aux, first[1], w, p.lengths)
    same(got, tangents, dtype)
    dy, daux = tangents[:2]
    delta, lam = back[0], back[1 + p.states]
    through = torch.cat([delta[..., : 2 * n], delta[..., 3 * n :]], -1) if cell == "gru" else delta
    sent = torch.einsum("ltbi,lij->ltbj", through, dw)
    later = torch.cat([sent[:, 1:], torch.zeros_like(sent[:, :1])], 1)
    if p.lengths is not None:  # a row that has ended takes nothing in
        later = later * (torch.arange(T)[:, None] < p.lengths)[None, :, :, None]
    if cell == "gru":
        saved = (dy, daux, dfirst[0], y, aux, first[0], lam)
    else:
        saved = (daux, dfirst[1], aux, first[1], lam, back[-1])
    ddelta, dgh0, *dgc0 = getattr(ops, f"{cell}_backward_jvp")(
        dgy + later, *dfinal, *saved, w, p.lengths
    )
    same([ddelta, dgh0 + sent[:, 0], *dgc0], dback[: 1 + p.states], dtype)


def test_same_bits_with_any_number_of_threads():
    threads, results = torch.get_num_threads(), []
    for cell in CELLS:
        p = Problem(cell, (1, 20, 37, 50), torch.float32)
        name, arguments = p.forward()
        y, aux, *_ = getattr(ops, name)(*arguments)
        back, backward = p.backward(y, aux, FULL, 0, False)
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append((*getattr(ops, name)(*arguments), *getattr(ops, back)(*backward)))
        finally:
            torch.set_num_threads(threads)
        for a, b in zip(*results[-2:], strict=True):
            assert torch.equal(a, b)


def test_refusals_name_the_argument():
    p = Problem("gru", (1, 3, 2, 4), torch.float64)
    _, (pre, h0, w, bias, _) = p.forward()
    with pytest.raises(RuntimeError, match="w has the wrong shape"):
        ops.gru_forward(pre, h0, w[:, :8], bias, None)
    with pytest.raises(RuntimeError, match="b_hn has another dtype"):
        ops.gru_forward(pre, h0, w, bias.float(), None)
    with pytest.raises(RuntimeError, match="pre has the wrong shape"):
        ops.gru_forward(pre[..., :8], h0, w, bias, None)
    y, aux, _ = ops.gru_forward(pre, h0, w, bias, None)
    with pytest.raises(RuntimeError, match="policy must be 0"):
        ops.gru_backward(y, None, y, aux, h0, w, None, 3, 0, 0.0, False)
    with pytest.raises(RuntimeError, match="w is needed by every policy but 1"):
        ops.gru_backward(y, None, y, aux, h0, None, None, 0, 0, 0.0, False)
    with pytest.raises(RuntimeError, match="window must be at least 0, and 0 with policy 2"):
        ops.gru_backward(y, None, y, aux, h0, w, None, 2, 3, 0.0, False)


def test_nothing_to_do():
    for cell in CELLS:
        for shape in ((0, 3, 2, 4), (1, 3, 0, 4)):
            p = Problem(cell, shape, torch.float64)
            name, arguments = p.forward()
            y, aux, *rest = getattr(ops, name)(*arguments)
            assert y.shape == shape and rest[0].shape == (shape[0], *shape[2:])
            name, arguments = p.backward(y, aux, FULL, 0, True)
            assert getattr(ops, name)(*arguments)[0].shape == (*shape[:3], 16)


def test_lengths_out_of_range_read_no_foreign_memory():
    for cell in CELLS:
        p = Problem(cell, (1, 3, 2, 4), torch.float64)
        p.lengths = torch.tensor([0, 9])
        name, arguments = p.forward()
        _, _, *final = getattr(ops, name)(*arguments)
        assert not any(f.any() for f in final)


def test_infinite_and_missing_numbers():
    values = torch.tensor([float("inf"), -float("inf"), 800.0, -800.0, float("nan"), 0.5])
    n = len(values)
    for dtype in (torch.float32, torch.float64):
        for cell in CELLS:
            p = Problem(cell, (1, 1, 1, n), dtype)
            p.pre = values.to(dtype).repeat(p.gates).view(1, 1, 1, -1)
            name, arguments = p.forward()
            for a, b in zip(
                getattr(ops, name)(*arguments), reference(name)(*arguments), strict=True
            ):
                torch.testing.assert_close(a, b, equal_nan=True)


@chosen
@every_instruction_set
def test_every_instruction_set(isa):
    """The same tests in a process restricted to ``isa``."""
    run_under(isa, __file__)
