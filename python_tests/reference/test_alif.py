"""The definition of ALIF and LIF against loops with autograd and ``detach``, and against forward
accumulation of what each rule keeps."""

import itertools

import pytest
import torch
from alif_oracle import Problem, relative

from rtrl_ext.reference import alif
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, HOP, LOCAL, STATE

pytestmark = pytest.mark.usefixtures("double")
SIZES = [(1, 1), (2, 3), (7, 3), (33, 1)]  # T, B
VARIANTS = [
    {},
    {"lif": True},
    {"scaling": True, "surrogate": 1},
    {"reset": 1, "surrogate": 2},
    {"reset": 1, "scaling": True, "refractory": 2},
    {"refractory": 1, "surrogate": 1},
    {"lif": True, "reset": 1, "refractory": 3},
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_size = pytest.mark.parametrize(("steps", "batch"), SIZES)


def lead(x):
    return None if x is None else x.unsqueeze(0)


def forward(p, want=True, lengths=None):
    adapts = [None if p.lif else lead(x) for x in (p.a0, p.rho, p.beta)]
    count = lead(p.count0) if p.refractory else None
    return alif.alif_forward(
        lead(p.pre), lead(p.z0), lead(p.v0), adapts[0], count, lead(p.w), lead(p.alpha),
        adapts[1], adapts[2], lengths, p.v_th, p.gamma, p.scaling, p.reset, p.surrogate,
        p.refractory, want,
    )  # fmt: skip


def before(first, x):
    return torch.cat([first.unsqueeze(0), x[:-1]])


def gradients(p, policy, *, w=None, mu=0.0, window=0, decay=0.0):
    """Gradients of every operand by name, from the reference's backward recursion."""
    z, psi, v, a, *_ = forward(p)
    if p.steps >= 7:
        assert z.any() and not z.all() and psi.any()
    kept_v = v if p.reset else v.new_empty(0)
    adapts = [None if p.lif else lead(x) for x in (p.rho, p.beta)]
    delta, gz0, gv0, ga0, dv, da, e = alif.alif_backward(
        lead(p.gz), lead(p.gv), None if p.lif else lead(p.ga), z, psi, kept_v, lead(p.z0),
        lead(p.v0), lead(p.w if w is None else w), lead(p.alpha), *adapts, None, p.v_th, p.scaling,
        p.reset, policy, mu, window, decay, True,
    )  # fmt: skip
    z, v, delta, dv, da, e = (x[0] if x.numel() else x for x in (z, v, delta, dv, da, e))
    last_z, last_v = before(p.z0, z), before(p.v0, v)
    out = {"pre": delta, "w": torch.einsum("tbi,tbj->ij", delta, last_z)}
    by_alpha = last_v * (1 - last_z) if p.reset else last_v
    if p.scaling:
        by_alpha = by_alpha - p.pre - last_z @ p.w.T
    out["alpha"] = (dv * by_alpha).sum((0, 1))
    if not p.lif:
        out |= {"rho": (da * before(p.a0, a[0])).sum((0, 1)), "beta": -(e * a[0]).sum((0, 1))}
        out["a0"] = ga0[0]
    return out | {"z0": gz0[0], "v0": gv0[0]}


def same(found, expected):
    for name, e in expected.items():
        got = found[name]
        if name == "pre" and e is not None and e.dim() == 1:
            got = got.sum((0, 1))
        error = float(got.norm()) if e is None else relative(got, e)
        assert error < 1e-12, (name, error)


@every_variant
@every_size
def test_values(steps, batch, variant):
    p = Problem(steps, batch, **variant)
    z, psi, v, a, v_n, a_n, count_n = forward(p)
    _, (z_e, psi_e, v_e, a_e, v_last, a_last, count) = p.loop()
    for found, expected in ((z, z_e), (psi, psi_e), (v, v_e), (v_n, v_last)):
        torch.testing.assert_close(found[0], expected, rtol=1e-13, atol=1e-13)
    if not p.lif:
        torch.testing.assert_close(a[0], a_e)
        torch.testing.assert_close(a_n[0], a_last)
    else:
        assert a.numel() == a_n.numel() == 0
    if p.refractory:
        assert torch.equal(count_n[0], count)
        fired = before(p.z0, z[0]).bool()
        assert not (fired & z[0].bool()).any()
    else:
        assert count_n.numel() == 0
    *rest, _, _, _ = forward(p, want=False)
    assert rest[3].numel() == 0 and (rest[2].numel() > 0) == bool(p.reset)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("policy", [FULL, LOCAL])
@every_variant
@every_size
def test_rules_equal_detached_loops(steps, batch, variant, policy, window):
    """BPTT, truncated BPTT, e-prop, and Immediate (a window of 1)."""
    p = Problem(steps, batch, **variant)
    expected, _ = p.loop(detached=policy == LOCAL, window=window)
    same(gradients(p, policy, window=window), expected)


@every_variant
@every_size
def test_readout_filter_equals_a_leaky_readout(steps, batch, variant):
    p = Problem(steps, batch, **variant)
    expected, _ = p.loop(detached=True, decay=0.7)
    found = gradients(p, LOCAL, decay=0.7)
    same(found, expected)
    if steps > 1:
        assert relative(found["w"], gradients(p, LOCAL)["w"]) > 1e-2


KINDS = [(FULL, "full"), (LOCAL, "local"), (DIAGONAL, "diagonal")]


@pytest.mark.parametrize(("policy", "kind"), KINDS)
@every_variant
@every_size
def test_rules_equal_forward_accumulation(steps, batch, variant, policy, kind):
    p = Problem(steps, batch, **variant)
    same(gradients(p, policy), p.influence(kind))


def factor(p):
    return (1 - p.alpha if p.scaling else torch.ones(p.n)).unsqueeze(1)


@pytest.mark.parametrize("mu", [0.0, 0.4])
@every_variant
@every_size
def test_hops_equal_explicit_modulators(steps, batch, variant, mu):
    """One hop (MDGL), and all hops with a constant in place of each slope (ModProp)."""
    p = Problem(steps, batch, **variant)
    hop = factor(p) * p.w
    expected = p.influence("local", hop=hop, mu=mu, taps=1 if mu == 0 else steps)
    same(gradients(p, HOP, w=hop, mu=mu), expected)


@every_variant
@every_size
def test_state_transport_equals_its_recursion_forwards(steps, batch, variant):
    p = Problem(steps, batch, **variant)
    same(gradients(p, STATE, w=0.4 * factor(p) * p.w), p.influence("state", mu=0.4))


RULES = [(FULL, 1), (FULL, 3), (LOCAL, 0), (DIAGONAL, 0), (HOP, 0), (STATE, 0)]


@every_variant
def test_biased_rules_differ(variant):
    """From the exact gradient, and from each other, in the recurrent weights."""
    p = Problem(33, 3, **variant)
    exact = gradients(p, FULL)["w"]
    found = []
    for policy, window in RULES:
        w = 0.5 * factor(p) * p.w if policy in (HOP, STATE) else p.w
        g = gradients(p, policy, w=w, window=window)["w"]
        assert relative(g, exact) > 1e-2
        found.append(g)
    for a, b in itertools.combinations(found, 2):
        assert relative(a, b) > 1e-3


@pytest.mark.parametrize("policy", [FULL, LOCAL, DIAGONAL, HOP, STATE])
@pytest.mark.parametrize("reset", [0, 1])
def test_no_adaptation_is_lif(policy, reset):
    p = Problem(33, 3, reset=reset, refractory=1)
    p.beta, p.ga = torch.zeros_like(p.beta), torch.zeros_like(p.ga)
    q = Problem(33, 3, reset=reset, refractory=1, lif=True)
    assert torch.equal(forward(p)[0], forward(q)[0])
    found, expected = gradients(p, policy), gradients(q, policy)
    same(found, expected)
    assert float(found["a0"].norm()) == 0 and float(found["beta"].norm()) > 0


@every_variant
def test_without_recurrent_weights_snap1_is_exact(variant):
    p = Problem(33, 3, **variant)
    p.w = torch.zeros_like(p.w)
    same(gradients(p, DIAGONAL), gradients(p, FULL))
    # e-prop's reset is detached all the same
    assert relative(gradients(p, LOCAL)["w"], gradients(p, FULL)["w"]) > 1e-2


@pytest.mark.parametrize("policy", [FULL, LOCAL, DIAGONAL, HOP, STATE])
@every_variant
def test_ragged_rows_and_replicas_equal_separate_sequences(variant, policy):
    ps = [Problem(9, 4, seed=s, **variant) for s in (0, 50)]
    p = ps[0]
    lengths = torch.tensor([9, 1, 4, 6])
    window = 2 if policy in (FULL, LOCAL) else 0
    lif, counts = p.lif, p.refractory > 0

    def both(name, wanted=True):
        return torch.stack([getattr(q, name) for q in ps]) if wanted else None

    z, psi, v, _, *finals = alif.alif_forward(
        both("pre"), both("z0"), both("v0"), both("a0", not lif), both("count0", counts),
        both("w"), both("alpha"), both("rho", not lif), both("beta", not lif), lengths, p.v_th,
        p.gamma, p.scaling, p.reset, p.surrogate, p.refractory, False,
    )  # fmt: skip
    assert z.any()
    back = alif.alif_backward(
        both("gz"), both("gv"), both("ga", not lif), z, psi, v, both("z0"), both("v0"), both("w"),
        both("alpha"), both("rho", not lif), both("beta", not lif), lengths, p.v_th, p.scaling,
        p.reset, policy, 0.4, window, 0.0, True,
    )  # fmt: skip
    for replica, b in itertools.product(range(2), range(4)):
        q, length = ps[replica], int(lengths[b])
        one = Problem(length, 1, **variant)
        for name in ("w", "alpha", "rho", "beta"):
            setattr(one, name, getattr(q, name))
        for name in ("z0", "v0", "a0", "count0", "gv", "ga"):
            setattr(one, name, getattr(q, name)[b : b + 1])
        for name in ("pre", "gz"):
            setattr(one, name, getattr(q, name)[:length, b : b + 1])
        z_one, _, _, _, *finals_one = forward(one)
        assert torch.equal(z[replica, :length, b], z_one[0, :, 0])
        for x in (z, psi, back[0], back[4], back[6]):
            assert not x[replica, length:, b].any()
        for x, y in zip(finals, finals_one, strict=True):
            if y.numel():
                torch.testing.assert_close(x[replica, b], y[0, 0])
        g = gradients(one, policy, mu=0.4, window=window) if length < 7 else None
        if g is not None:
            torch.testing.assert_close(back[0][replica, :length, b], g["pre"][:, 0])
            for x, name in zip(back[1:4], ("z0", "v0", "a0"), strict=True):
                if x.numel():
                    torch.testing.assert_close(x[replica, b], g[name][0])
