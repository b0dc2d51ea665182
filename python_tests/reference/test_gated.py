"""The definitions of GRU and LSTM against torch's own modules, loops with ``detach``, and masked
forward accumulation."""

import pytest
import torch

from rtrl_ext.reference import gru, lstm
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, LOCAL

pytestmark = pytest.mark.usefixtures("double")
CELLS = ["gru", "lstm"]
GATES = {"gru": 3, "lstm": 4}
STATES = {"gru": 1, "lstm": 2}
SIZES = [(1, 1), (2, 3), (7, 3), (33, 1)]  # T, B
N, M = 5, 4


class Problem:
    """Operands with the leading dimension, and learning signals; all random."""

    def __init__(self, cell, steps, batch, lead=1, ragged=False):
        torch.manual_seed(steps + 10 * batch)
        self.cell, self.steps, self.batch = cell, steps, batch
        gates = GATES[cell]
        self.pre = torch.randn(lead, steps, batch, gates * N)
        self.w = torch.randn(lead, gates * N, N)
        self.b_hn = torch.randn(lead, N)
        self.state = [torch.randn(lead, batch, N) for _ in range(STATES[cell])]
        self.gy = torch.randn(lead, steps, batch, N)
        self.g_state = [torch.randn(lead, batch, N) for _ in range(STATES[cell])]
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, steps + 1, (batch,))

    def forward(self):
        if self.cell == "gru":
            return gru.gru_forward(self.pre, self.state[0], self.w, self.b_hn, self.lengths)
        return lstm.lstm_forward(self.pre, *self.state, self.w, self.lengths)

    def backward(self, policy, window=0, decay=0.0):
        """Gradients of pre, w, b_hn (GRU) and the initial states under a rule."""
        y, aux, *_ = self.forward()
        options = (self.lengths, policy, window, decay, False)
        if self.cell == "gru":
            saved = (y, aux, self.state[0], self.w)
            delta, *first, _ = gru.gru_backward(self.gy, self.g_state[0], *saved, *options)
            through_w = torch.cat([delta[..., : 2 * N], delta[..., 3 * N :]], -1)
            extra = [delta[..., 3 * N :].sum((1, 2))]
        else:
            saved = (aux, self.state[1], self.w)
            delta, *first, _, _ = lstm.lstm_backward(self.gy, *self.g_state, *saved, *options)
            through_w, extra = delta, []
        before = torch.cat([self.state[0].unsqueeze(1), y[:, :-1]], 1)
        gw = torch.einsum("ltbi,ltbj->lij", through_w, before)
        return [delta[..., : GATES[self.cell] * N], gw, *extra, *first]

    def step(self, pre, state, w, b_hn, seen):
        """One step of the definition; ``seen`` is h as the recurrent weights see it."""
        if self.cell == "gru":
            (h,) = state
            a_r, a_z, a_q = (seen @ w.T).chunk(3, -1)
            u_r, u_z, u_q = pre.chunk(3, -1)
            r, z = torch.sigmoid(u_r + a_r), torch.sigmoid(u_z + a_z)
            q = torch.tanh(u_q + r * (a_q + b_hn))
            return [(1 - z) * q + z * h]
        i, f, g, o = (pre + seen @ w.T).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return [torch.sigmoid(o) * torch.tanh(c), c]

    def loop(self, policy, window=0):
        """The same gradients by autograd over a loop with ``detach`` at the right edge."""
        pre, w, b_hn = (t[0].clone().requires_grad_() for t in (self.pre, self.w, self.b_hn))
        first = [s[0].clone().requires_grad_() for s in self.state]
        state, ys = first, []
        for t in range(self.steps):
            if window and t and (self.steps - t) % window == 0:
                state = [s.detach() for s in state]
            seen = state[0].detach() if policy == LOCAL else state[0]
            state = self.step(pre[t], state, w, b_hn, seen)
            ys.append(state[0])
        wanted = [pre, w, *([b_hn] if self.cell == "gru" else []), *first]
        found = torch.autograd.grad(
            (torch.stack(ys), *state),
            wanted,
            (self.gy[0], *(g[0] for g in self.g_state)),
            allow_unused=True,
        )
        return [torch.zeros_like(a) if g is None else g for g, a in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_decay_filters_the_learning_signal(cell, steps, batch, window):
    """sum_t L_t F_t with F_t = sum_{s <= t} d^(t-s) e_s, as d^(t-s) summed over t for every s."""
    p, decay = Problem(cell, steps, batch), 0.7
    found = p.backward(LOCAL, window, decay)
    plain = p.backward(LOCAL, window)
    lag = torch.arange(steps) - torch.arange(steps)[:, None]
    powers = torch.where(lag >= 0, decay ** lag.clamp_min(0).double(), torch.zeros(()))
    p.gy[:, -1] += p.g_state[0]
    p.g_state[0] = torch.zeros_like(p.g_state[0])
    p.gy = torch.einsum("st,ltbj->lsbj", powers, p.gy)
    same(found, [g.unsqueeze(0) for g in p.loop(LOCAL, window)])
    if steps > 1:
        assert relative(found[1], plain[1]) > 1e-2
    same(p.backward(FULL, 0, decay), p.backward(FULL))


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        if float(b.norm()) == 0:
            assert float(a.norm()) == 0
        else:
            assert relative(a, b) < 1e-12


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_forward_equals_torch(cell, steps, batch):
    p = Problem(cell, steps, batch)
    module = getattr(torch.nn, cell.upper())(M, N)
    x = torch.randn(steps, batch, M)
    w_ih, w_hh, b_ih, b_hh = (q.detach() for q in module.parameters())
    p.pre = (x @ w_ih.T + b_ih).unsqueeze(0)
    p.w = w_hh.unsqueeze(0)
    if cell == "gru":
        p.pre[..., : 2 * N] += b_hh[: 2 * N]
        p.b_hn = b_hh[2 * N :].unsqueeze(0)
    else:
        p.pre += b_hh
    y, last = module(x, p.state[0] if cell == "gru" else tuple(p.state))
    found, _, *finals = p.forward()
    torch.testing.assert_close(found[0], y, rtol=1e-12, atol=1e-12)
    for a, b in zip(finals, (last,) if cell == "gru" else last, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("policy", [FULL, LOCAL])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_rules_equal_detached_loops(cell, steps, batch, policy, window):
    """BPTT, truncated BPTT, e-prop, and Immediate (e-prop and BPTT with a window of 1)."""
    p = Problem(cell, steps, batch)
    same(p.backward(policy, window), [g.unsqueeze(0) for g in p.loop(policy, window)])


def masked_accumulation(p):
    """Gradients of w (and b_hn) by forward accumulation of each parameter's influence on all
    states of the unit that owns it, nothing else."""
    w, b_hn = p.w[0], p.b_hn[0]
    states, units = STATES[p.cell], torch.arange(N)
    owner_w = units.repeat(GATES[p.cell]).unsqueeze(1).expand(-1, N).reshape(-1)
    owner = torch.cat([owner_w, units])
    keep = units.repeat(states).unsqueeze(1) == owner  # (states N, P)
    total = torch.zeros(owner.numel())

    def step(theta, flat, pre):
        matrix = theta[: w.numel()].view_as(w)
        state = list(flat.chunk(states))
        return torch.cat(p.step(pre, state, matrix, theta[w.numel() :], state[0]))

    theta = torch.cat([w.flatten(), b_hn])
    for b in range(p.batch):
        flat = torch.cat([s[0, b] for s in p.state])
        influence = torch.zeros(states * N, owner.numel())
        for t in range(p.steps):
            by_theta, by_state = torch.func.jacrev(step, (0, 1))(theta, flat, p.pre[0, t, b])
            influence = keep * (by_state @ influence + by_theta)
            flat = step(theta, flat, p.pre[0, t, b])
            total += p.gy[0, t, b] @ influence[:N]
        total += torch.cat([g[0, b] for g in p.g_state]) @ influence
    return total[: w.numel()].view_as(w), total[w.numel() :]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_snap1_equals_masked_accumulation(cell, steps, batch):
    p = Problem(cell, steps, batch)
    gw, gb = masked_accumulation(p)
    found = p.backward(DIAGONAL)
    assert relative(found[1][0], gw) < 1e-12
    if cell == "gru":
        assert relative(found[2][0], gb) < 1e-12


@pytest.mark.parametrize("policy", [LOCAL, DIAGONAL])
@pytest.mark.parametrize("cell", CELLS)
def test_biased_rules_differ_from_bptt(cell, policy):
    p = Problem(cell, 7, 3)
    assert relative(p.backward(policy)[1], p.backward(FULL)[1]) > 1e-2


@pytest.mark.parametrize("cell", CELLS)
def test_without_recurrent_weights_the_rules_agree(cell):
    p = Problem(cell, 7, 3)
    p.w = torch.zeros_like(p.w)
    exact = p.backward(FULL)
    for policy in (LOCAL, DIAGONAL):
        same(p.backward(policy), exact)


@pytest.mark.parametrize("policy", [FULL, LOCAL, DIAGONAL])
@pytest.mark.parametrize("cell", CELLS)
def test_ragged_rows_and_replicas_equal_separate_sequences(cell, policy):
    p = Problem(cell, 6, 4, lead=2, ragged=True)
    window = 0 if policy == DIAGONAL else 2
    decay = 0.4 if policy == LOCAL else 0.0
    y, _, *finals = p.forward()
    found = p.backward(policy, window, decay)
    total = torch.zeros_like(found[1])
    for replica in range(2):
        for b, length in enumerate(p.lengths.tolist()):
            one = Problem(cell, length, 1)
            one.pre = p.pre[replica, :length, b : b + 1].unsqueeze(0)
            one.w, one.b_hn = p.w[replica : replica + 1], p.b_hn[replica : replica + 1]
            one.state = [s[replica : replica + 1, b : b + 1] for s in p.state]
            one.g_state = [s[replica : replica + 1, b : b + 1] for s in p.g_state]
            one.gy = p.gy[replica, :length, b : b + 1].unsqueeze(0)
            y_one, _, *finals_one = one.forward()
            torch.testing.assert_close(y[replica, :length, b], y_one[0, :, 0])
            assert not y[replica, length:, b].any()
            for a, c in zip(finals, finals_one, strict=True):
                torch.testing.assert_close(a[replica, b], c[0, 0])
            grads = one.backward(policy, window, decay)
            torch.testing.assert_close(found[0][replica, :length, b], grads[0][0, :, 0])
            assert not found[0][replica, length:, b].any()
            total[replica] += grads[1][0]
            for a, c in zip(found[-STATES[cell] :], grads[-STATES[cell] :], strict=True):
                torch.testing.assert_close(a[replica, b], c[0, 0])
    torch.testing.assert_close(found[1], total)
