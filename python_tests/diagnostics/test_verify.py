"""`verify`: what it says of right rules and of broken ones."""

import copy
import dataclasses
import json
import math

import pytest
import torch

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext._stream.traces import Traces
from rtrl_ext.diagnostics import Verification, alignment, verify

RULES = [rules.EProp(), rules.SnAp1(), rules.RTRL(), rules.SnAp(1), rules.UORO(1)]
EXACT = [rules.BPTT(), rules.RTRL(), rules.SnAp(2), rules.TBPTT(99)]


@pytest.mark.parametrize("cell", ["LeakyRNN", "GRU", "LSTM", "ALIF", "LIF"])
@pytest.mark.parametrize("rule", [*RULES, *EXACT], ids=repr)
def test_every_rule_passes(cell, rule):
    torch.manual_seed(1)
    options = {"tau_v": 5.0, "v_th": 0.3} if "LIF" in cell else {}
    found = verify(getattr(rx, cell)(3, 5, **options), rule, seq_len=7, batch_size=2)
    if "LIF" in cell:
        assert (
            found.liveness.layers[0].firing_rate.max() > 0
            and found.liveness.layers[0].psi_fraction > 0
        )
    if rule in EXACT:
        assert found.total.expected == "exact" and found.total.error < 1e-9
        assert all(b.passed for b in found.blocks.values())
    elif not isinstance(rule, rules.UORO):
        assert found.total.expected == "biased" and found.total.error > 1e-3
    if "streaming" in rule.modes and not isinstance(rule, rules.TBPTT):
        assert found.law < 1e-9 and found.law_passed
    assert found.passed


def test_numbers_are_those_of_alignment():
    torch.manual_seed(2)
    module = rx.GRU(3, 5, rule="eprop", dtype=torch.float64)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    found = verify(module, x=x, seed=5)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    other = alignment(module, lambda out, target: (out[0] * target).sum(), (x, weights))
    assert found.total.cosine == pytest.approx(other.cosine, rel=1e-9)
    for name, block in other.blocks.items():
        assert found.blocks[name].cosine == pytest.approx(block.cosine, rel=1e-9)
        assert found.blocks[name].norm_ratio == pytest.approx(block.norm_ratio, rel=1e-9)
        error = 1 + block.norm_ratio**2 - 2 * block.rho  # ‖ĝ - g‖² / ‖g‖²
        assert found.blocks[name].error == pytest.approx(math.sqrt(error), rel=1e-6)


def test_a_rule_that_gives_another_gradient_fails(monkeypatch):
    module = rx.GRU(3, 5)
    assert verify(module, "snap1").passed
    monkeypatch.setattr(rules.SnAp1, "policy", lambda self, w, factor: {"policy": 0})  # BPTT's
    found = verify(module, "snap1")
    assert found.total.passed is False and found.law_passed is False and found.passed is False
    assert "FAILED" in str(found)


def test_a_broken_trace_breaks_the_law(monkeypatch):
    module = rx.LSTM(3, 5)
    assert verify(module, "eprop").law_passed
    monkeypatch.setattr(rules.EProp, "learner", lambda self, setting: Traces(setting, policy=2))
    found = verify(module, "eprop")
    assert found.law > 1e-3 and found.total.passed and found.passed is False


def test_stacks_are_exact_in_the_last_layer():
    found = verify(rx.LeakyRNN(3, 5, 2, leak=0.4), "rtrl", seq_len=9)
    assert all(
        b.passed is (True if name.endswith("l1") else None) for name, b in found.blocks.items()
    )
    assert found.blocks["weight_hh_l0"].error > 1e-3 and found.total.passed is None and found.passed


def test_linear_units_layouts_and_noise():
    lru = verify(rx.LRU(3, 5, 2, batch_first=True), "snap1", seq_len=6)
    assert lru.passed and lru.total.expected == "exact" and lru.liveness is None and lru.law < 1e-9
    noisy = rx.LeakyRNN(3, 5, leak=0.3, noise_std=0.5, batch_first=True)
    found = verify(noisy, "rtrl", x=torch.randn(2, 8, 3))
    assert found.passed and found.seq_len == 8 and found.batch_size == 2 and found.law < 1e-9


def test_the_mean_over_seeds_comes_closer():
    torch.manual_seed(3)
    module = rx.LeakyRNN(2, 3)
    one = verify(module, rules.UORO(0), seq_len=5)
    many = verify(module, rules.UORO(0), seq_len=5, seeds=100)
    assert many.total.error < 0.5 * one.total.error and many.total.passed is None


def test_nothing_has_to_hold_where_nothing_can_differ():
    silent = rx.LIF(3, 5)  # without input: v is 0, just where the surrogate ends
    found = verify(silent, "eprop", x=torch.zeros(5, 2, 3))
    assert math.isnan(found.total.error) and found.total.passed is None
    assert found.liveness.layers[0].silent.all()
    assert verify(rx.GRU(3, 5), "eprop", seq_len=1).total.passed is None
    bptt = verify(rx.GRU(3, 5), "bptt")
    assert bptt.law is None and "no streaming form" in bptt.law_reason


def test_the_module_stays_as_it_is():
    module = rx.ALIF(3, 5, rule=rules.Scaled("eprop", "rho"))
    module(torch.randn(4, 2, 3))[0].sum().backward()
    before = copy.deepcopy([module.state_dict(), module._rule_states, module.rule])
    grads = {k: p.grad.clone() for k, p in module.named_parameters()}
    state, rule = torch.get_rng_state(), module.rule
    verify(module)
    verify(module, "uoro")
    assert torch.equal(torch.get_rng_state(), state)
    assert module.rule is rule and module._rule_states == before[1]
    assert all(torch.equal(v, before[0][k]) for k, v in module.state_dict().items())
    assert all(torch.equal(p.grad, grads[k]) for k, p in module.named_parameters())
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_reports_are_frozen_and_readable():
    found = verify(rx.GRU(3, 5), "rtrl")
    assert isinstance(found, Verification) and rx.verify is verify
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.cell = "LSTM"
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["passed"] is True and plain["blocks"]["weight_hh_l0"]["expected"] == "exact"
    assert "passed" in str(found) and "weight_hh_l0" in str(found)


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"module": torch.nn.GRU(3, 4)}, TypeError, "module"),
        ({"rule": "kfrtrl"}, ValueError, "GRU"),
        ({"rule": 3}, TypeError, "rule"),
        ({"x": [1.0]}, TypeError, "x is"),
        ({"x": torch.zeros(3, 2, 3, dtype=torch.int64)}, TypeError, "x has dtype"),
        ({"x": torch.zeros(3, 2, 4)}, ValueError, "x has shape"),
        ({"seq_len": 0}, ValueError, "seq_len"),
        ({"batch_size": 2.0}, TypeError, "batch_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 1.0}, TypeError, "seed"),
        ({"seeds": 2}, ValueError, "seeds"),
        ({"tolerance": 0}, ValueError, "tolerance"),
        ({"tolerance": "small"}, TypeError, "tolerance"),
    ],
)
def test_wrong_arguments_are_named(options, error, name):
    with pytest.raises(error, match=name):
        verify(**({"module": rx.GRU(3, 4), "rule": "eprop"} | options))


def test_masked_gates():
    ring = torch.eye(5).roll(1, 0).bool()
    torch.manual_seed(4)
    module = rx.GRU(3, 5, 2, mask=ring)
    errors = [verify(module, rules.SnAp(k), seq_len=9).blocks["weight_hh_l1"].error for k in (1, 3)]
    assert errors[0] > errors[1] > 1e-6
    assert verify(module, rules.SnAp(5), seq_len=9).total.expected == ""  # a stack
    single = rx.LSTM(3, 5, mask=ring)
    assert verify(single, rules.SnAp(5), seq_len=9).total.expected == "exact"
    assert verify(single, rules.SnAp(5), seq_len=9).passed
    assert verify(single, rules.SnAp(4), seq_len=9).total.expected == "biased"
    assert verify(single, rules.SnAp(4), seq_len=9).passed
    alone = rx.GRU(3, 5, mask=torch.eye(5).bool())
    assert verify(alone, "snap1").total.passed is None and verify(alone, "snap1").total.error < 1e-9


TAUGHT = [
    ("rate", rx.LeakyRNN, {"leak": 0.3}, "EProp"),
    ("voltage", rx.LeakyRNN, {"leak": 0.3, "form": "voltage"}, "EProp"),
    ("leaks, trained", rx.LeakyRNN, {"leak": 0.4, "learn_leak": True, "num_layers": 2}, "EProp"),
    ("GRU", rx.GRU, {"num_layers": 2}, "Immediate"),
    ("ALIF", rx.ALIF, {"tau_v": 5.0, "v_th": 0.3}, "Immediate"),
]


@pytest.mark.parametrize(
    ("cls", "options", "same"), [t[1:] for t in TAUGHT], ids=[t[0] for t in TAUGHT]
)
def test_rules_without_sequence_mode_that_learn_nothing(cls, options, same, monkeypatch):
    """They are another rule, and a broken one is found."""
    torch.manual_seed(1)
    net = cls(3, 5, **options)
    fixed = rules.KeRNL("identity", decay_rate=0) if same == "EProp" else rules.DNI(rate=0)
    found = verify(net, fixed, seq_len=9, batch_size=2)
    assert found.mode == "streaming" and found.law_rule == f"{same}()"
    assert found.law < 1e-12 and found.total.expected == "biased" and found.passed
    assert "in streaming mode, 9 steps" in str(found) and f"of {same}()" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["law_rule"] == f"{same}()"
    other = verify(net, same.lower(), seq_len=9, batch_size=2)
    if getattr(net, "num_layers", 1) == 1 or same == "Immediate":
        for name, block in other.blocks.items():
            assert found.blocks[name].error == pytest.approx(block.error, rel=1e-6)
    make = type(fixed).learner

    def broken(self, setting):
        learner = make(self, setting)
        advance = learner.advance
        learner.advance = lambda *args: {k: 1.001 * g for k, g in advance(*args).items()}
        return learner

    monkeypatch.setattr(type(fixed), "learner", broken)
    wrong = verify(net, fixed, seq_len=9, batch_size=2)
    assert wrong.law == pytest.approx(1e-3, rel=1e-3) and not wrong.passed


@pytest.mark.parametrize("rule", [rules.KeRNL(seed=1), rules.DNI()], ids=repr)
def test_rules_that_learn_have_no_verdict(rule):
    torch.manual_seed(1)
    net = rx.GRU(3, 5)
    found = verify(net, rule, seq_len=9)
    assert found.mode == "streaming" and found.law is None and found.passed is None
    assert found.law_reason == "the rule has no sequence mode"
    assert 1e-2 < found.total.error < 1.5
    several = verify(net, rules.KeRNL(seed=1), seq_len=9, seeds=2)
    assert several.seeds == 2 and several.total.error != found.total.error
    with pytest.raises(ValueError, match="seeds is 2; expected 1"):
        verify(net, rules.DNI(), seeds=2)
