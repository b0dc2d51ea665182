"""The network, data and optimizer of a run."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import rules, tasks
from ..nn import ALIF, DaleMask, LeakyRNN, dale
from ..nn.base import RecurrentBase
from ..tasks import Task
from ..tasks.checks import SizeError
from .config import RunConfig, SettingError, Settings

RECURRENT = "rnn.weight_hh_l0"
#: the same under Dale's law
DALE_RECURRENT = "rnn.parametrizations.weight_hh_l0.original"
#: threshold of spiking units, and height of their surrogate
V_TH, GAMMA = 0.6, 0.3
#: spectral radius of Dale networks at the start: with a radius near 1 they forget the first cue of
#: delayed-xor and are not learned (half of the relu units are silent)
DALE_RADIUS = 2.0


class Classifier(nn.Module):
    """A recurrent module with a linear readout of the last ``steps`` of its output (None: all).

    ``decay``: the readout of spikes is filtered as a leaky membrane does, ``y_t = v_t + b``,
    ``v_t = decay v_{t-1} + W z_t`` (None: not filtered).
    """

    def __init__(
        self,
        rnn: RecurrentBase,
        output_size: int,
        steps: int | None = 1,
        decay: float | None = None,
    ) -> None:
        super().__init__()
        self.rnn = rnn
        self.readout = nn.Linear(rnn.hidden_size, output_size)
        self.steps = steps
        self.decay = decay

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (T, B, m) to ``(steps, B, outputs)``, or ``(B, outputs)`` where it is one step."""
        output, _ = self.rnn(x)
        if self.decay is not None:
            found = self._filtered(output, self.decay)
        else:
            found = self.readout(output if self.steps is None else output[-self.steps :])
        return found[-1] if self.steps == 1 else found

    def _filtered(self, output: Tensor, decay: float) -> Tensor:
        """The readout of the last ``steps``, filtered from the beginning."""
        current = nn.functional.linear(output, self.readout.weight)
        total = len(current)
        first = 0 if self.steps is None else max(0, total - self.steps)
        lag = torch.arange(first, total)[:, None] - torch.arange(total)
        kernel = (decay ** lag.clamp(min=0)).to(current) * (lag >= 0).to(current)
        membrane = (kernel @ current.flatten(1)).view(-1, *current.shape[1:])
        return membrane + self.readout.bias


class Data(NamedTuple):
    """The data of a run: training set, test set, and the shifted test set that is followed."""

    train: Task
    test: Task
    shift: Task | None


def make_data(settings: Settings, seed: int) -> Data:
    """The three sets of a run; the split depends on ``seed`` alone.

    `SettingError` if the data has fewer sequences than the settings ask for, or the task's options
    are out of range. Where a task has no shifts, there is no third set.
    """
    for name in ("train_size", "test_size"):
        if settings.data is None and getattr(settings, name) is None:
            raise SettingError(f"{name}: got 'all' without a folder of data, expected a number")
    try:
        train, test = (make_set(settings, seed, split) for split in ("train", "test"))
        named = tasks.get(tasks.parse(settings.task)[0]).shifts
        shift = make_set(settings, seed, "test", settings.shift) if named else None
    except SizeError as error:
        text = str(error).replace("num_train", "train_size").replace("num_test", "test_size")
        raise SettingError(text) from error
    if settings.batch_size > len(train):
        raise SettingError(
            f"batch_size: got {settings.batch_size}, expected at most the {len(train)} "
            "training sequences"
        )
    return Data(train, test, shift)


def make_set(settings: Settings, seed: int, split: str, shift: str | None = None) -> Task:
    """One data set of a run: a split, under a named shift or none."""
    name, _ = tasks.parse(settings.task)
    options: dict[str, Any] = {
        "num_train": settings.train_size,
        "num_test": settings.test_size,
    }
    if name == "seqmnist":
        if shift is not None:
            options["noise_std"] = settings.shift_noise
        return tasks.make(settings.task, split, seed, data=settings.data, **options)
    if shift is not None:
        options["shift"] = shift
    try:
        return tasks.make(settings.task, split, seed, **options)
    except (ValueError, TypeError) as error:
        raise SettingError(f"task: {settings.task}: {error}") from error


def other_shifts(settings: Settings) -> list[str]:
    """The task's named shifts but the one that is followed along training."""
    named = tasks.get(tasks.parse(settings.task)[0]).shifts
    return [name for name in named if name != settings.shift]


def make_model(settings: Settings, task: Task, seed: int) -> Classifier:
    """The network for a task at its seeded start (see `make_network`)."""
    return make_network(
        settings, task.input_size, task.output_size, seed, steps=task.output_steps, dt=task.dt
    )


def make_network(
    settings: Settings,
    input_size: int,
    output_size: int,
    seed: int,
    *,
    steps: int | None = 1,
    dt: float = 1.0,
) -> Classifier:
    """The network at its seeded start, under BPTT: the same for every rule.

    He initialisation: ``U ~ N(0, 2/m)``, ``W ~ N(0, 2/n)``, biases zero; readout ``U(±1/√n)``.
    Under Dale's law the size of a weight is the square of a normal number, columns have their sign,
    excitation and inhibition balance, and the spectral radius is 2. Spiking units, half of them
    adaptive: ``U ~ N(0, 1/m)``, ``W ~ N(0, 1/n)``, a readout filtered with ``exp(-dt/τ_v)``. ``dt``
    is the step in ms. With ``rank`` W keeps its largest singular values alone and is scaled back to
    its Frobenius norm; then it is multiplied by ``gain``.
    """
    n = settings.hidden_size
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        rnn = _cell(settings, input_size, dt)
        decay = math.exp(-dt / settings.tau_v) if settings.cell == "alif" else None
        model = Classifier(rnn, output_size, steps, decay)
    gain = 1.0 if settings.cell == "alif" else 2.0
    with torch.no_grad():
        rnn.get_parameter("weight_ih_l0").normal_(
            0.0, math.sqrt(gain / input_size), generator=generator
        )
        weight = rnn.get_parameter("weight_hh_l0")
        weight.normal_(0.0, math.sqrt(gain / n), generator=generator)
        if settings.cell == "leaky":
            rnn.get_parameter("bias_ih_l0").zero_()
            rnn.get_parameter("bias_hh_l0").zero_()
        bound = 1 / math.sqrt(n)
        model.readout.weight.uniform_(-bound, bound, generator=generator)
        model.readout.bias.uniform_(-bound, bound, generator=generator)
        if settings.dale:
            _balance(weight, DaleMask(n, settings.dale).signs)
        if settings.rank is not None:
            _cut_rank(weight, settings.rank)
        if settings.gain != 1:
            weight.mul_(settings.gain)
        if settings.dale:
            dale(rnn, settings.dale)
    return model


def _cut_rank(weight: Tensor, rank: int) -> None:
    """``weight`` (n, n) becomes the nearest matrix of that rank, scaled to its Frobenius norm."""
    u, s, v = torch.linalg.svd(weight.double())
    kept = s[:rank] * (s.norm() / s[:rank].norm())
    weight.copy_((u[:, :rank] * kept) @ v[:rank])


def recurrent(model: nn.Module) -> str:
    """The name of the recurrent weights among the parameters of a network of `make_network`."""
    named = dict(model.named_parameters())
    return DALE_RECURRENT if DALE_RECURRENT in named else RECURRENT


def _cell(settings: Settings, input_size: int, dt: float) -> RecurrentBase:
    n = settings.hidden_size
    if settings.cell == "alif":
        beta = torch.zeros(n)
        beta[n // 2 :] = settings.beta
        return ALIF(
            input_size, n, tau_v=settings.tau_v, tau_a=settings.tau_a, beta=beta, v_th=V_TH,
            gamma=GAMMA, dt=dt,
        )  # fmt: skip
    return LeakyRNN(
        input_size, n, nonlinearity=settings.nonlinearity, leak=settings.leak, form=settings.form
    )


def _balance(weight: Tensor, signs: Tensor) -> None:
    """Make standard normal numbers ``weight`` (n, n) weights of a Dale network, in place."""
    weight.square_()
    excitatory = signs > 0
    share = float(excitatory.double().mean())
    if 0 < share < 1:
        weight[:, ~excitatory] *= share / (1 - share)
    weight *= signs.to(weight)
    weight *= DALE_RADIUS / float(torch.linalg.eigvals(weight.double()).abs().max())


def training_rule(run: RunConfig) -> rules.Rule:
    """The rule that a run trains by: that of its arm's kind.

    Under Dale's law ``mdgl`` and ``modprop`` average over the two cell types, unless their
    parameters say otherwise.
    """
    rule = rules.parse(run.rule_spec)
    typed = isinstance(rule, (rules.MDGL, rules.ModProp)) and "cell_" not in run.rule
    if run.settings.dale and typed:
        types = DaleMask(run.settings.hidden_size, run.settings.dale).cell_types
        rule = replace(rule, cell_specific=False, cell_types=types)  # type: ignore[type-var]
    if run.kind == "bptt-rho":
        return rules.BPTT()
    if run.kind == "projected":
        return rules.Projected(rule, keep="parallel")
    if run.kind == "matched-noise":
        return rules.MatchedNoise(rule, seed=run.seed)
    return rule


def make_optimizer(settings: Settings, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """SGD (with momentum) or Adam at the rate ``lr``; L2 is ``½ l2 ‖θ‖²`` over all parameters."""
    parameters = list(model.parameters())
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=settings.l2, foreach=True)
    return torch.optim.SGD(
        parameters, lr=lr, momentum=settings.momentum, weight_decay=settings.l2, foreach=True
    )
