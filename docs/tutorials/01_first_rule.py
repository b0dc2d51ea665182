# %% [markdown]
# # Your first bio-plausible rule
#
# You have PyTorch code that trains a recurrent network by backpropagation through time (BPTT). Here
# you train the same network by e-prop, a rule that a synapse could compute from what it sees itself
# and from an error that is sent to its unit. You change one line, look at how good the rule's
# gradient is, and meet three mistakes that make a comparison of rules worthless.
#
# Needed: `pip install 'rtrl_ext[study]'` (the digits and the figures). Half a minute on two cores.

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

import rtrl_ext as rx

# the tests run this page shortened
SHORT = os.environ.get("RTRL_EXT_TUTORIAL") == "short"
ITERATIONS = 100 if SHORT else 800
FIRST = 60 if SHORT else 200
RATES = [0.03, 0.3] if SHORT else [0.01, 0.03, 0.1, 0.3, 1.0]
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The code that you have
#
# A classifier reads a digit row by row, 28 steps of 28 pixels, and names it after the last row.

# %%
train_set, test_set = rx.tasks.SequentialMNIST("train"), rx.tasks.SequentialMNIST("test")


class Classifier(nn.Module):
    """Any recurrent module, and a readout of its last step."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.readout = nn.Linear(64, 10)

    def forward(self, x):  # (T, B, 28)
        return self.readout(self.rnn(x)[0][-1])


def train(make_rnn, lr=0.1, iterations=ITERATIONS, watch=None):
    """Train from seed 0 by SGD; the model, the loss at every iteration, what `watch` saw."""
    torch.manual_seed(0)
    model = Classifier(make_rnn())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batches = train_set.loader(64, shuffle=True, seed=0, drop_last=True).forever()
    losses, seen = [], []
    for i in range(iterations):
        x, target = next(batches)
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        if watch and i % 10 == 0:
            seen.append((i, watch(model, x, target)))
        optimizer.step()
        losses.append(loss.item())
    return model, losses, seen


def smooth(losses, window=20):
    """Mean over the last `window` iterations."""
    values = torch.tensor(losses).unfold(0, min(window, len(losses)), 1)
    return values.mean(-1)


def accuracy(model):
    """Share of the test digits that the model names rightly."""
    with torch.no_grad():
        hits = sum(int((model(x).argmax(-1) == t).sum()) for x, t in test_set.loader(500))
    return hits / len(test_set)


model, torch_losses, _ = train(lambda: nn.RNN(28, 64), lr=0.05, iterations=FIRST)
print(f"torch.nn.RNN: loss {torch_losses[-1]:.6f}, test accuracy {accuracy(model):.3f}")

# %% [markdown]
# ## One line changes
#
# `rx.LeakyRNN` takes the place of `torch.nn.RNN`: the same arguments, parameters and results, so
# that the loop, the optimizer and the readout stay as they are. Under `rule="bptt"`, the default,
# it also learns the same:

# %%
model, bptt_losses, _ = train(lambda: rx.LeakyRNN(28, 64, rule="bptt"), lr=0.05, iterations=FIRST)
difference = max(abs(a - b) for a, b in zip(torch_losses, bptt_losses, strict=True))
bptt_accuracy = accuracy(model)
print(f"rx.LeakyRNN:  loss {bptt_losses[-1]:.6f}, test accuracy {bptt_accuracy:.3f}")
print(f"largest difference between the two losses in {FIRST} iterations: {difference:.1e}")

# %% [markdown]
# What is left is float32 rounding. An existing model needs no new class at all: `rx.convert(model,
# rule="eprop")` puts the modules in and keeps the parameters, and with them your optimizer.
#
# Now e-prop. `loss.backward()` puts its gradient into `.grad` of the recurrent layer; the readout,
# whose gradient needs no time, gets the exact one.

# %%
model, leak1_losses, _ = train(lambda: rx.LeakyRNN(28, 64, rule="eprop"), lr=0.05, iterations=FIRST)
leak1_accuracy = accuracy(model)
print(f"e-prop, leak 1: loss {leak1_losses[-1]:.3f}, test accuracy {leak1_accuracy:.3f}")

# %% [markdown]
# ## Mistake 1: leak 1
#
# That was bad, and the reason isn't e-prop. A unit of `torch.nn.RNN` forgets its state at every
# step: $h_t = \phi(W h_{t-1} + U x_t + b)$. E-prop carries credit through time along each unit's
# own memory,
#
# $$h_t = (1-\kappa)\, h_{t-1} + \kappa\, \phi(W h_{t-1} + U x_t + b), \qquad
#   e_t = (1-\kappa)\, e_{t-1} + \kappa\, \phi'_t\, h_{t-1},$$
#
# with the leak $\kappa = dt/\tau$ (`leak=`). At $\kappa = 1$ the trace $e_t$ reaches back one step.
# The loss is at the last row, so the recurrent and input weights learn from the last row alone. The
# rule is then `Immediate`, which carries nothing through time:


# %%
def gradient(rnn, rule, x, target):
    """The gradient of the recurrent weights under a rule, at weights of seed 0."""
    rnn.rule = rule  # can be changed at any time
    torch.manual_seed(1)
    readout = nn.Linear(rnn.hidden_size, 10)
    rnn.zero_grad()
    nn.functional.cross_entropy(readout(rnn(x)[0][-1]), target).backward()
    return rnn.weight_hh_l0.grad.clone()


x, target = train_set.batch(slice(0, 256))
for leak in (1.0, 0.5):
    torch.manual_seed(0)
    rnn = rx.LeakyRNN(28, 64, leak=leak)
    eprop, immediate = gradient(rnn, "eprop", x, target), gradient(rnn, "immediate", x, target)
    difference_to_immediate = float((eprop - immediate).norm() / eprop.norm())
    print(f"leak {leak}: ‖e-prop - immediate‖ / ‖e-prop‖ = {difference_to_immediate:.2g}")
    if leak == 1.0:
        assert torch.equal(eprop, immediate)

# %% [markdown]
# So a comparison of rules needs units with a memory of their own, with a time constant that fits
# the task. From here on $\kappa = 0.5$.
#
# ## What the rule's gradient is, against the exact one
#
# `alignment` compares a rule's gradient $\hat g$ with the exact one, $g$:
#
# * $\rho = \langle\hat g, g\rangle/\|g\|^2$: how far a step goes along $g$, next to BPTT's at the
#   same learning rate;
# * cosine: the direction alone; norm ratio $\|\hat g\|/\|g\|$: the length alone.

# %%
RULES = {
    "bptt": rx.rules.BPTT(),
    "immediate": rx.rules.Immediate(),
    "eprop": rx.rules.EProp(),
    "snap1": rx.rules.SnAp1(),
    "mdgl": rx.rules.MDGL(cell_specific=True),
    "modprop": rx.rules.ModProp(mu=0.25, cell_specific=True),
}


def leaky(rule):
    """A function that makes the recurrent layer."""
    return lambda: rx.LeakyRNN(28, 64, leak=0.5, rule=rule)


torch.manual_seed(0)
model = Classifier(leaky("bptt")())
start = {}
for name, rule in RULES.items():
    start[name] = rx.diagnostics.alignment(
        model, nn.functional.cross_entropy, (x, target), rule=rule
    )
    whole, recurrent = start[name], start[name].blocks["rnn.weight_hh_l0"]
    print(
        f"{name:10s} all: rho {whole.rho:.3f}  cosine {whole.cosine:.3f}   "
        f"recurrent weights: rho {recurrent.rho:.3f}  cosine {recurrent.cosine:.3f}"
    )
print("readout under e-prop: rho", round(start["eprop"].blocks["readout.weight"].rho, 6))

# %% [markdown]
# Look at the blocks: the readout's exact gradient makes the whole look better than the recurrent
# weights are. That holds at one point in weight space. Rules are to be judged where training takes
# them:


# %%
def watch(model, x, target):
    """Alignment of the module's own rule on the training batch, recurrent weights."""
    found = rx.diagnostics.alignment(model, nn.functional.cross_entropy, (x, target))
    return found.blocks["rnn.weight_hh_l0"]


SHOWN = ("bptt", "modprop", "eprop", "immediate")
runs = {name: train(leaky(RULES[name]), watch=watch) for name in SHOWN}
accuracies = {name: accuracy(model) for name, (model, _, _) in runs.items()}
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.5), layout="constrained")
for name, (_, losses, seen) in runs.items():
    left.plot(smooth(losses), label=f"{name}: test accuracy {accuracies[name]:.2f}")
    right.plot([i for i, _ in seen], [found.cosine for _, found in seen], label=name)
left.set(xlabel="iteration", ylabel="training loss (mean of 20)")
right.set(xlabel="iteration", ylabel="cosine with the exact gradient", ylim=(-0.2, 1.05))
right.set_title("recurrent weights", fontsize="medium")
figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
plt.show()
for name, (_, losses, seen) in runs.items():
    rho = sum(found.rho for _, found in seen) / len(seen)
    print(
        f"{name:10s} loss {smooth(losses)[-1]:.2f}  test accuracy {accuracies[name]:.3f}  "
        f"mean rho {rho:.2f}"
    )

# %% [markdown]
# All start from the same weights and see the same batches, at the same learning rate. The more
# credit a rule carries, the faster it learns here. And the start was no guide to the rest: the
# cosines of the biased rules fall from 0.8 or 0.9 to about a third of that, and $\rho$ with them.
#
# ## Mistake 2: a window too short to tell the rules apart
#
# Rules differ in the credit that they send back through time *and* across units. With few steps
# between input and loss there is none to send. The same trained network, on the last $T$ rows
# alone:

# %%
windows = [2, 3, 4, 6, 8, 12, 16, 20, 24, 28]
model = runs["bptt"][0]
cosines = {name: [] for name in ("modprop", "eprop", "immediate")}
for T in windows:
    for name, values in cosines.items():
        data = (x[-T:], target)
        found = rx.diagnostics.alignment(model, nn.functional.cross_entropy, data, rule=RULES[name])
        values.append(found.blocks["rnn.weight_hh_l0"].cosine)
figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for name, values in cosines.items():
    axis.plot(windows, values, "o-", label=name)
axis.set(xlabel="T, steps in the window", ylabel="cosine with the exact gradient")
axis.legend(frameon=False)
plt.show()
print("cosine of e-prop:", {T: round(c, 3) for T, c in zip(windows, cosines["eprop"], strict=True)})

# %% [markdown]
# At $T = 2$ every rule is exact in the recurrent weights, because the state before the first step
# is zero and the loss comes right after the only step that used them. A rule that "matches BPTT"
# there has shown nothing. For the same reason `TBPTT(k)` is BPTT where $k \ge T$.
#
# ## Mistake 3: one learning rate
#
# The gradients differ in length, and a rate that is good for one rule is not for another:

# %%
final = {}
for name in ("bptt", "eprop"):
    final[name] = [float(smooth(train(leaky(RULES[name]), lr=lr)[1])[-1]) for lr in RATES]
figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for name, values in final.items():
    axis.semilogx(RATES, values, "o-", label=name)
axis.set(
    yscale="log", xlabel="learning rate", ylabel=f"training loss after {ITERATIONS} iterations"
)
axis.legend(frameon=False)
plt.show()
for name, values in final.items():
    best = min(range(len(RATES)), key=lambda i: values[i])
    shown = "  ".join(f"{lr:g}: {value:.2f}" for lr, value in zip(RATES, values, strict=True))
    print(f"{name:6s} loss by rate  {shown}   best at {RATES[best]:g}")

# %% [markdown]
# At rate 1 e-prop looks better than BPTT, which blows up there; at the other rates BPTT is ahead.
# E-prop bears the large rate because $\rho$ is small: along the exact gradient its steps are $\rho$
# times as long. So compare rules each at its own best rate, or at equal training loss ([the third
# tutorial](03_beyond_accuracy.ipynb)).
#
# ## Where to go on
#
# * Is the minimum that a rule found sharp? [The second tutorial](02_sharp_minimum.ipynb).
# * [rules.md](../rules.md): what each rule computes, when it is exact;
#   [streaming.md](../streaming.md): one step at a time.
# * `rx.diagnostics.liveness(model, x)` tells a network of silent or saturated units, in which no
#   rule learns, from a hard task; [biology.md](../biology.md) has random feedback, Dale's law and
#   learning from reward.
