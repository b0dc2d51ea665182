"""What the steps of UORO, KF-RTRL and OK refuse, and that a refused call changes nothing."""

import pytest
import torch
from stochastic_oracle import Network

from rtrl_ext.functional import kfrtrl_step_, ok_step_, random_signs, uoro_step_

B, STEP = 3, {"uoro": uoro_step_, "kfrtrl": kfrtrl_step_, "ok": ok_step_}
RULES = list(STEP)


def arguments(rule, steps=None):
    """Valid arguments of one step, or of K, of an LSTM with n = 2."""
    net = Network("LSTM", steps=steps or 1)
    J, psi, pre = net.batched(B)
    grad = torch.ones(8, 4, dtype=torch.float64)
    count = {"uoro": 4, "kfrtrl": 2, "ok": 3}[rule]
    signs = random_signs(0, torch.arange(B), count, steps=steps or 1, dtype=torch.float64)
    signal = torch.ones(steps or 1, B, 4, dtype=torch.float64)
    many = {"jacobian": J, "psi": psi[0], "pre": pre[0], "signs": signs, "signal": signal}
    many = {k: x if steps else x[0] for k, x in many.items()}
    if rule == "uoro":
        state = {"state": torch.ones(B, 4).double(), "theta": torch.ones(B, 8, 4).double()}
    else:
        rank = [2] * (rule == "ok")
        state = {"u": torch.ones(B, *rank, 4).double(), "a": torch.ones(B, *rank, 4, 8).double()}
    return {**state, **many, "grad": grad, "keep": torch.ones(B, dtype=torch.bool)}


def refuses(rule, error, match, steps=None, **changes):
    args = {**arguments(rule, steps), **changes}
    before = {k: x.clone() for k, x in args.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(error, match=match):
        STEP[rule](**args)
    assert all(torch.equal(args[k], x) for k, x in before.items())


def state_names(rule):
    return ("state", "theta[0]") if rule == "uoro" else ("u", "a")


def argument(name):
    return name.partition("[")[0]


@pytest.mark.parametrize("rule", RULES)
def test_shapes_and_types(rule):
    args = arguments(rule)
    lists = {"psi": "psi[0]", "pre": "pre[0]", "grad": "grad[0]"} if rule == "uoro" else {}
    first, second = state_names(rule)
    refuses(rule, ValueError, f"{first} has shape", **{first: args[first].unsqueeze(0)})
    refuses(rule, TypeError, f"{first} is a float", **{first: 3.0})
    for name in (argument(second), "jacobian", "psi", "pre", "signs", "signal", "grad"):
        shown = {argument(second): second, **lists}.get(name, name).replace("[", r"\[")
        refuses(rule, (ValueError, TypeError), shown, **{name: args[name][:2]})
        refuses(rule, TypeError, f"{shown} has dtype torch.float32", **{name: args[name].float()})
        refuses(rule, TypeError, name, **{name: 3.0})
    refuses(rule, ValueError, "keep has shape", keep=torch.ones(2, dtype=torch.bool))
    refuses(rule, TypeError, "keep has dtype", keep=torch.ones(B))
    refuses(rule, TypeError, "float32 or float64", **{first: args[first].half()})
    refuses(rule, ValueError, "multiple of the 2 units", psi=args["psi"][..., :7])
    refuses(rule, ValueError, "divide", psi=args["psi"][:, :1].expand(-1, 3, -1))
    refuses(rule, ValueError, "row = new state|expected", jacobian=args["jacobian"][..., :3])
    refuses(rule, ValueError, "signal has shape", signal=args["signal"].unsqueeze(0))


@pytest.mark.parametrize("rule", RULES)
def test_pending_steps(rule):
    args = arguments(rule, 3)
    refuses(rule, ValueError, "K = 0", 3, jacobian=args["jacobian"][:0])
    refuses(rule, ValueError, "signal has shape", 3, signal=args["signal"][:0])
    refuses(rule, ValueError, "last 1 to 3", 3, signal=torch.ones(4, B, 4).double())
    for name in ("psi", "pre", "signs"):
        refuses(rule, ValueError, name, 3, **{name: args[name][:2]})


@pytest.mark.parametrize("rule", RULES)
def test_memory_that_is_written(rule):
    args = arguments(rule)
    first, second = (argument(name) for name in state_names(rule))
    for name in (first, second, "grad"):
        turned = args[name].mT.contiguous().mT
        refuses(rule, ValueError, "contiguous", **{name: turned})
    grad = args[second].flatten()[:32].view(8, 4)
    refuses(rule, ValueError, "share memory", **{second: args[second], "grad": grad})
    whole = torch.ones(B * 100).double()
    pre = whole[: B * 4].view(B, 4)
    state = whole[2 : 2 + args[first].numel()].view(args[first].shape)
    refuses(rule, ValueError, r"pre.* shares memory", **{first: state, "pre": pre})


@pytest.mark.parametrize("rule", RULES)
def test_gradients(rule):
    args = arguments(rule)
    first, second = (argument(name) for name in state_names(rule))
    for name in (first, second, "jacobian", "psi", "pre", "grad"):
        leaf = args[name].clone().requires_grad_()
        refuses(rule, RuntimeError, "requires grad", **{name: leaf})
    with torch.no_grad():
        STEP[rule](**{**args, "jacobian": args["jacobian"].clone().requires_grad_()})


@pytest.mark.parametrize("rule", RULES)
def test_versions_rise_and_the_states_come_back(rule):
    args = arguments(rule)
    names = [argument(name) for name in state_names(rule)]
    versions = {name: args[name]._version for name in (*names, "grad")}
    found = STEP[rule](**args)
    assert found[0] is args[names[0]] and found[1] is args[names[1]]
    assert all(args[name]._version > v for name, v in versions.items())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [None, 2])
def test_compiled(rule, steps):
    eager, traced = arguments(rule, steps), arguments(rule, steps)
    STEP[rule](**eager)

    def call(args):
        a, b = STEP[rule](**args)
        return 2 * a, 2 * b

    doubled = torch.compile(call, fullgraph=True, backend="aot_eager")(traced)
    for name in (*(argument(n) for n in state_names(rule)), "grad"):
        assert torch.equal(eager[name], traced[name])
    assert torch.equal(doubled[0], 2 * eager[argument(state_names(rule)[0])])


@pytest.mark.parametrize("rule", RULES)
def test_no_rows(rule):
    args = arguments(rule)
    batched = {k: x[:0] for k, x in args.items() if k != "grad"}
    STEP[rule](**batched, grad=args["grad"])
    assert (args["grad"] == 1).all()


def test_blocks_of_uoro():
    args = arguments("uoro")
    one = {k: [args[k]] for k in ("theta", "psi", "pre", "grad")}
    refuses("uoro", ValueError, "0 blocks", theta=[])
    refuses("uoro", ValueError, "17 blocks", theta=[args["theta"]] * 17)
    refuses("uoro", ValueError, "psi has 2 blocks; expected 1", psi=[args["psi"]] * 2)
    refuses("uoro", TypeError, "theta is a dict", theta={})
    refuses("uoro", ValueError, "theta", theta=[args["theta"]] * 2)
    refuses("uoro", ValueError, "norm has shape", norm=torch.ones(4).double())
    twice = {k: x * 2 for k, x in one.items() if k != "theta"}
    refuses("uoro", ValueError, "share memory", **{**twice, "theta": one["theta"] * 2})
    other = [args["psi"], torch.ones(B, 1, 4).double()]
    two = {"theta": [args["theta"], args["theta"].clone()], "pre": [args["pre"]] * 2}
    grads = [args["grad"], args["grad"].clone()]
    refuses("uoro", ValueError, r"psi\[1\] has S = 1", psi=other, grad=grads, **two)


def test_rank_of_ok():
    args = arguments("ok")
    refuses("ok", ValueError, "r = 0", u=args["u"][:, :0])
    refuses("ok", ValueError, "signs has shape", signs=args["signs"][:, :2])


def test_random_signs():
    first = torch.zeros(3, dtype=torch.int64)
    for changes, error, match in (
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**63}, ValueError, "seed is"),
        ({"seed": 1.0}, TypeError, "seed is a float"),
        ({"count": 0}, ValueError, "count is 0"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"stream": 2**31}, ValueError, "stream is"),
        ({"first": first.int()}, TypeError, "first has dtype"),
        ({"first": first[None]}, ValueError, "first has shape"),
        ({"dtype": torch.float16}, TypeError, "dtype is"),
    ):
        with pytest.raises(error, match=match):
            random_signs(**{"seed": 1, "first": first, "count": 4, **changes})
