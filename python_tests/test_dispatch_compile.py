"""``leaky_core`` inside torch.compile: whole graphs that keep the operations, and torch.func."""

import pytest
import torch
from functorch.compile import make_boxed_func
from leaky_oracle import Problem, assert_close, naive, rules
from torch._dynamo.backends.common import aot_autograd
from torch.func import grad, jvp, vmap

from rtrl_ext import _kernels, _state
from rtrl_ext._dispatch import leaky_core

CASES = {
    "bptt": {},
    "unit leak": {"unit_leak": True},
    "voltage": {"form": "voltage", "nonlinearity": "softplus"},
    "ragged": {"ragged": True},
    "lead": {"lead": (2,)},
}


class Graphs:
    """A compiler backend that keeps the code of its graphs and runs them as they are."""

    def __init__(self):
        self.forward, self.backward = [], []
        self.backend = aot_autograd(
            fw_compiler=self.keep(self.forward), bw_compiler=self.keep(self.backward)
        )

    @staticmethod
    def keep(where):
        def compiler(module, example_inputs):
            where.append(module.code)
            return make_boxed_func(module.forward)

        return compiler


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model(p, core, **rule):
    """Initial output and state are one tensor, as in a rate layer."""

    def f(pre, h, w, leak):
        y, s_n = core(pre, h, h, w, leak, **p.options, **rule)
        return (y * p.gy).sum() + (s_n**2).sum()

    return f


def operands(p):
    pre, h, _, w, leak = p.leaves()
    return pre, h, w, leak


def check_training(p, rule, namespace):
    graphs = Graphs()
    compiled = torch.compile(model(p, leaky_core, **rule), fullgraph=True, backend=graphs.backend)

    def gradients(f):
        x = operands(p)
        return torch.autograd.grad(f(*x), [t for t in x if t.requires_grad])

    assert_close(gradients(compiled), gradients(model(p, leaky_core, **rule)), 1e-12)
    assert f"torch.ops.{namespace}.leaky_forward" in graphs.forward[0]
    assert f"torch.ops.{namespace}.leaky_backward" in graphs.backward[0]


@pytest.mark.parametrize("case", CASES)
def test_training_keeps_the_operations(case):
    check_training(Problem(5, 3, 4, **CASES[case]), {}, "rtrl_ext")


def test_training_on_the_reference():
    with _kernels.use_reference():
        check_training(Problem(5, 3, 4), {}, "rtrl_ext_reference")


@pytest.mark.parametrize("rule", [r for r in rules(Problem()) if r != "bptt"])
def test_training_under_a_rule(rule):
    p = Problem(5, 3, 4)
    check_training(p, rules(p)[rule], "rtrl_ext")


@pytest.mark.parametrize("case", CASES)
def test_inference_keeps_the_operation(case):
    p = Problem(5, 3, 4, **CASES[case])
    graphs = Graphs()
    f = model(p, leaky_core)
    compiled = torch.compile(f, fullgraph=True, backend=graphs.backend)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            x = [t.detach() for t in operands(p)]
            assert_close([compiled(*x)], [f(*x)], 1e-12)
        assert ".leaky_forward" in graphs.forward[-1]


def test_other_sizes_use_the_same_function():
    compiled = torch.compile(leaky_core, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((5, 3, 4), (9, 2, 4), (6, 7, 4)):
        p = Problem(*size)
        assert_close(compiled(*p.tensors), leaky_core(*p.tensors), 1e-12)


def test_exact_gradients_is_seen_by_compiled_code():
    p = Problem(5, 3, 4)
    compiled = torch.compile(model(p, leaky_core, policy=1), fullgraph=True, backend="aot_eager")

    def gradients(f):
        x = operands(p)
        return torch.autograd.grad(f(*x), x)

    assert_close(gradients(compiled), gradients(model(p, leaky_core, policy=1)))
    with _state.exact_gradients():
        assert_close(gradients(compiled), gradients(model(p, leaky_core)))
    assert_close(gradients(compiled), gradients(model(p, leaky_core, policy=1)))


TRANSFORMS = {
    "grad": lambda f, x, v: grad(f, (0, 1, 2, 3))(*x),
    "jvp": lambda f, x, v: jvp(f, x, v),
    "vmap of grad": lambda f, x, v: vmap(grad(f, 2), (0, None, None, None))(
        torch.stack([x[0], v[0]]), *x[1:]
    ),
    "jvp of grad": lambda f, x, v: jvp(grad(f, (0, 1, 2, 3)), x, v),
    "vmap of jvp of grad": lambda f, x, v: vmap(
        lambda d: jvp(lambda w: grad(f, 2)(*x[:2], w, x[3]), (x[2],), (d,))[1]
    )(torch.stack([v[2], 2 * v[2], v[2].T])),
}


@pytest.mark.parametrize("form", ["rate", "voltage"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_while_compiling(name, form):
    p = Problem(4, 2, 3, form=form)
    x = tuple(t.detach() for t in operands(p))
    v = tuple(0.3 * p.normal(*t.shape) for t in x)

    def run(core):
        return TRANSFORMS[name](model(p, core), x, v)

    leaves = torch.utils._pytree.tree_leaves
    got = torch.compile(lambda: run(leaky_core), fullgraph=True, backend="aot_eager")()
    assert_close(leaves(got), leaves(run(naive)), 1e-11)


def test_transform_of_a_rule_while_compiling_is_refused():
    p = Problem(4, 2, 3)
    x = tuple(t.detach() for t in operands(p))
    f = torch.compile(grad(model(p, leaky_core, policy=1), 2), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"rtrl_ext\.exact_gradients\(\)"):
        f(*x)
    with _state.exact_gradients():
        assert_close([f(*x)], [grad(model(p, naive), 2)(*x)], 1e-11)


@pytest.mark.slow
def test_inductor():
    p = Problem(5, 3, 4)
    compiled = torch.compile(model(p, leaky_core), fullgraph=True)

    def gradients(f):
        x = operands(p)
        return torch.autograd.grad(f(*x), x)

    assert_close(gradients(compiled), gradients(model(p, naive)), 1e-11)
