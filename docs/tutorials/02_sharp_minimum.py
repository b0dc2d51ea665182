# %% [markdown]
# # Is my minimum sharp?
#
# Sharp is what the loss is along the leading eigenvectors of its Hessian. This page measures it
# with error bars, looks at the whole spectrum and at the landscape, follows it along training, and
# holds it against the two limits that give "sharp" a meaning: $2/\eta$ for BPTT and $2/(\eta\rho)$
# for a rule whose step along the gradient is $\rho$ times as long.
#
# Needed: `pip install 'rtrl_ext[curvature]'`. About a minute on two cores.

# %%
import copy
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

import rtrl_ext as rx

# the tests run this page shortened
SHORT = os.environ.get("RTRL_EXT_TUTORIAL") == "short"
ITERATIONS, EVERY = (600, 100) if SHORT else (3000, 50)
LR = 0.1
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Two minima
#
# A small task, learned by heart: 64 sequences of two noisy channels; did the first half of channel
# 0 have the sign of the second half of channel 1? Full batches and plain gradient descent, so that
# no noise is in the way. BPTT and e-prop start from the same weights.
#
# `SharpnessTracker` measures along the way: the leading eigenvalue $\lambda_1$, the trace, $\rho$.
# Training is bitwise what it would be without it. (`budget=0.05` keeps it within 5 % of the
# training time; here we want every point.)

# %%
generator = torch.Generator().manual_seed(0)
x = torch.randn(20, 64, 2, generator=generator)
data = x, torch.sign(x[:10, :, 0].mean(0) * x[10:, :, 1].mean(0))


class Comparator(nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rnn = rx.LeakyRNN(2, 24, leak=0.3, rule=rule)
        self.readout = nn.Linear(24, 1)

    def forward(self, x):
        return self.readout(self.rnn(x)[0][-1]).squeeze(-1)


def loss_fn(output, target):
    return (output - target).square().mean()


def train(rule):
    torch.manual_seed(0)
    model = Comparator(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    tracker = rx.curvature.SharpnessTracker(
        model, loss_fn, data, lr=optimizer, every=EVERY, budget=None, trace_products=10
    )
    losses = []
    for step in range(ITERATIONS):
        tracker.update(step)
        loss = loss_fn(model(data[0]), data[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, tracker, losses


models, trackers, losses = {}, {}, {}
for rule in ("bptt", "eprop"):
    models[rule], trackers[rule], losses[rule] = train(rule)
    print(f"{rule:6s} loss {losses[rule][0]:.3f} -> {losses[rule][-1]:.4f};", trackers[rule])

# %% [markdown]
# ## Along training
#
# The dashed lines are the limits: near a minimum, gradient descent at rate $\eta$ is stable while
# $\lambda_1 < 2/\eta$. Along the gradient, the steps of a rule with factor $\rho$ are those of BPTT
# at $\rho\eta$, so its limit is $2/(\eta\rho)$.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for color, (rule, tracker) in zip(("C0", "C1"), trackers.items(), strict=True):
    table = tracker.to_dataframe()
    axes[0].semilogy(losses[rule], color=color, label=rule)
    axes[1].semilogy(table["step"], table["lambda1"], color=color, label=f"{rule}: λ₁")
    limit = 2 / (table["lr"] * table["rho"].where(table["rho"] > 0))
    axes[1].semilogy(
        table["step"], limit, "--", color=color, label="2/η" if rule == "bptt" else "2/(ηρ)"
    )
    axes[2].plot(table["step"], table["eta_rho_lambda1"], color=color, label=rule)
axes[2].axhline(2, color="gray", ls="--")
for axis, title in zip(
    axes, ("training loss", "λ₁ of the Hessian, and its limit", "ηρλ₁"), strict=True
):
    axis.set(title=title, xlabel="iteration")
    axis.legend(frameon=False, fontsize="small")
plt.show()
late = {
    rule: tracker.to_dataframe().iloc[-1 - ITERATIONS // EVERY // 4 :]
    for rule, tracker in trackers.items()
}
for rule, table in late.items():
    print(
        f"{rule:6s} last quarter, medians: λ₁ {table['lambda1'].median():.1f}  "
        f"rho {table['rho'].median():.2f}  ηλ₁ {LR * table['lambda1'].median():.2f}  "
        f"ηρλ₁ {table['eta_rho_lambda1'].median():.2f}"
    )
print(f"2/η = {2 / LR:g}")

# %% [markdown]
# Sharpness grows until the step size stops it, and then stays at the limit. E-prop ends sharper
# than BPTT *could* be at this rate, and yet each is at its own limit. So "is it sharp?" has two
# answers: e-prop's place is the sharper one (its loss is still falling: a minimum only loosely),
# and neither could stay much sharper with that rule at that rate. Before you blame the rule's
# error, ask what BPTT at $\rho\eta$ would do.
#
# The Hessian is that of the true loss in both cases, whatever rule trained the weights.
#
# ## One number with an error bar
#
# `eigsh` returns eigenpairs with residual norms $\|Hv - \lambda v\|$: within that distance of each
# value there is an eigenvalue. Here the matrix is small enough to check it.

# %%
model = models["eprop"]
H = rx.curvature.Hessian(model, loss_fn, data)
top = H.eigsh(k=5, which="LA", tol=1e-4)
low = H.eigsh(k=1, which="SA", tol=1e-4)
dense = torch.linalg.eigvalsh(H.dense().double()).flip(0)
print(f"P = {H.shape[0]} parameters, {top.num_products} products")
for value, residual, exact in zip(top.values, top.residual_norms, dense, strict=False):
    print(f"  {value:9.4f} ± {residual:.1g}   all eigenvalues of the full matrix: {exact:9.4f}")
print(
    f"  smallest {low.values[0]:.4f} ± {low.residual_norms[0]:.1g}   full matrix: {dense[-1]:.4f}"
)

# %% [markdown]
# The trace needs random probes, so it has a standard error, which says how seriously to take it:

# %%
print(f"exact trace {dense.sum():.2f}")
for method in ("hutchinson", "hutch++", "xtrace"):
    for products in (30, 120):
        found = H.trace(method, num_products=products, seed=0)
        print(f"  {method:10s} {products:4d} products: {found.value:8.2f} ± {found.stderr:.2g}")

# %% [markdown]
# ## The spectrum
#
# Stochastic Lanczos gives the density without a matrix. Most eigenvalues are near zero; a few stand
# out.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for rule, axis in zip(models, (left, right), strict=True):
    density = rx.curvature.Hessian(models[rule], loss_fn, data).spectral_density(8, 40, seed=0)
    density.plot(axis)
    axis.set_title(f"{rule}: density of eigenvalues", fontsize="medium")
    low, high = density.quantile(0.05), density.quantile(0.95)
    print(f"{rule:6s} nine tenths of the eigenvalues between {low:.3f} and {high:.3f}")
plt.show()

# %% [markdown]
# ## The landscape
#
# The loss along the leading eigenvector, beside the parabola that $\lambda_1$ promises. Where the
# two part, curvature is no longer what you feel. And a measure without derivatives: the rise of the
# loss under 1 % noise on the weights.

# %%
figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for color, (rule, model) in zip(("C0", "C1"), models.items(), strict=True):
    line = rx.curvature.landscape(model, loss_fn, data, "eigenvectors", 41, span=0.3, dim=1)
    a = line.coordinates[0]
    axis.plot(a, line.loss, color=color, label=f"{rule}: loss")
    # the gradient along the eigenvector, by a central difference, is not quite zero yet
    slope = float(line.loss[21] - line.loss[19]) / float(a[21] - a[19])
    parabola = line.center + slope * a + float(line.eigenvalues[0]) / 2 * a.square()
    axis.plot(a, parabola, "--", color=color, label="parabola")
    rise = rx.curvature.perturbation_sharpness(
        model, loss_fn, data, sigma_rel=0.01, num=100, seed=0
    )
    print(
        f"{rule:6s} rise of the loss under 1 % noise: {rise.mean:.2e} ± {rise.stderr:.1g}, "
        f"worst of 100 {rise.max:.2e}"
    )
axis.set(xlabel="distance along the leading eigenvector", ylabel="loss", ylim=(0, None))
axis.legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# E-prop's valley is the narrower one. The noise agrees, but look at its error bar: of e-prop's rise
# it is more than a third, and the worst of the 100 draws is eight times the mean. Take more of them
# before you rank networks by it.
#
# ## Three ways to be wrong
#
# **Which parameters, which data.** The same network, measured in ways that all appear in papers:

# %%
model = models["eprop"]
fresh = torch.randn(20, 64, 2, generator=generator)
other = fresh, torch.sign(fresh[:10, :, 0].mean(0) * fresh[10:, :, 1].mean(0))
part = data[0][:, :16], data[1][:16]
ways = {
    "all parameters, all data": (data, None),
    "recurrent weights only": (data, ["rnn.weight_hh_l0"]),
    "16 of the 64 sequences": (part, None),
    "fresh sequences": (other, None),
}
measured = {}
for name, (batch, params) in ways.items():
    found = rx.curvature.Hessian(model, loss_fn, batch, params).eigsh(which="LA", tol=1e-3)
    measured[name] = float(found.values[0])
    print(f"{name:26s} λ₁ {measured[name]:8.2f} ± {found.residual_norms[0]:.1g}")

# %% [markdown]
# Stability concerns all parameters and the data that training sees. Name what you measure, and keep
# it fixed.
#
# **Scale.** With relu units, multiply what comes into unit $i$ by $a$ and divide what it sends out
# by $a$: the function is the same, the curvature is not. A sharpness without a scale to hold it
# against, such as $2/\eta$, means little.


# %%
class Relu(Comparator):
    def __init__(self):
        super().__init__("bptt")
        self.rnn = rx.LeakyRNN(2, 12, nonlinearity="relu", leak=0.3)
        self.readout = nn.Linear(12, 1)


torch.manual_seed(0)
relu = Relu()
a = torch.ones(12)
a[:6] = 10.0
for when in ("before", "after"):
    if when == "after":
        with torch.no_grad():
            relu.rnn.weight_ih_l0 *= a[:, None]
            relu.rnn.bias_ih_l0 *= a
            relu.rnn.bias_hh_l0 *= a
            relu.rnn.weight_hh_l0 *= a[:, None] / a
            relu.readout.weight /= a
    measured[when] = float(rx.curvature.Hessian(relu, loss_fn, data).eigsh(which="LA").values[0])
    with torch.no_grad():
        measured[f"loss {when}"] = float(loss_fn(relu(data[0]), data[1]))
    print(f"{when:6s} loss {measured[f'loss {when}']:.6f}  λ₁ {measured[when]:.2f}")

# %% [markdown]
# **$2/(\eta\rho)$ where it isn't exact.** It is a theorem for one residual, and a guide elsewhere.
# With more, what counts is the spectrum of the rule's own gradient field, which
# `diagnostics.stability` computes. At a minimum that fits exactly, here one whose target is the
# network's own output, predict the largest stable step size, and try a little less and a little
# more, starting a millionth away:


# %%
torch.manual_seed(1)
xs = torch.randn(8, 3, 2, dtype=torch.float64)
start = rx.LeakyRNN(2, 6, leak=0.5, dtype=torch.float64)
with torch.no_grad():
    own = start(xs)[0]


def squared(output, target):
    return (output[0] - target).square().mean()


def growth_of_residuals(rule, lr, steps=400):
    """Their size after so many steps of size lr, in units of that at the start."""
    torch.manual_seed(2)
    net = copy.deepcopy(start)
    net.rule = rule
    with torch.no_grad():
        for p in net.parameters():
            p += 1e-6 * torch.randn_like(p)
    optimizer, sizes = torch.optim.SGD(net.parameters(), lr=lr), []
    for _ in range(steps):
        loss = squared(net(xs), own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sizes.append(loss.item() ** 0.5)
    return sizes[-1] / sizes[0]


growth = {}
for rule in ("bptt", "eprop"):
    found = rx.diagnostics.stability(start, squared, (xs, own), lr=LR, rule=rule)
    guide = 2 / (found.rho * found.leading_eigenvalue)
    print(f"{rule:6s} critical step {found.critical_lr:.3f}, 2/(ρλ₁) {guide:.3f}")
    for factor in (0.95, 1.05):
        growth[rule, factor] = growth_of_residuals(rule, factor * found.critical_lr)
        print(f"       {factor:.2f} times that: residuals x {growth[rule, factor]:.1e}")

# %% [markdown]
# The spectrum's prediction holds on both sides. $2/(\rho\lambda_1)$ is BPTT's limit exactly, and
# close to e-prop's, not equal.
#
# ## Where to go on
#
# [curvature.md](../curvature.md): all operators and estimators, and more pitfalls. On the command
# line: `rtrl-ext curvature RUN --k 3`. [The third tutorial](03_beyond_accuracy.ipynb): whether
# sharpness goes along with generalization.
