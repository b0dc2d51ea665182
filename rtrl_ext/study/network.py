"""The network, data and optimizer of a run."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import rules, tasks
from ..nn import LeakyRNN
from ..tasks import Task
from ..tasks.checks import SizeError
from .config import RunConfig, SettingError, Settings

RECURRENT = "rnn.weight_hh_l0"


class Classifier(nn.Module):
    """A `LeakyRNN` with a linear readout of its last output."""

    def __init__(self, rnn: LeakyRNN, output_size: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.readout = nn.Linear(rnn.hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (T, B, m) to logits (B, classes) at the last step."""
        output, _ = self.rnn(x)
        return self.readout(output[-1])


class Data(NamedTuple):
    """The data of a run: training set, test set, shifted test set."""

    train: Task
    test: Task
    shift: Task


def make_data(settings: Settings, seed: int) -> Data:
    """The three sets of a run; the split depends on ``seed`` alone.

    `SettingError` if the data has fewer sequences than the settings ask for.
    """
    for name in ("train_size", "test_size"):
        if settings.data is None and getattr(settings, name) is None:
            raise SettingError(f"{name}: got 'all' without a folder of data, expected a number")
    task = tasks.get(settings.task)
    options: dict[str, Any] = {
        "data": settings.data,
        "num_train": settings.train_size,
        "num_test": settings.test_size,
    }
    noise = settings.shift_noise
    try:
        train: Task = task("train", seed, **options)  # type: ignore[call-arg, arg-type]
        test: Task = task("test", seed, **options)  # type: ignore[call-arg, arg-type]
        shift: Task = task("test", seed, noise_std=noise, **options)  # type: ignore[call-arg, arg-type]
    except SizeError as error:
        text = str(error).replace("num_train", "train_size").replace("num_test", "test_size")
        raise SettingError(text) from error
    if settings.batch_size > len(train):
        raise SettingError(
            f"batch_size: got {settings.batch_size}, expected at most the {len(train)} "
            "training sequences"
        )
    return Data(train, test, shift)


def make_network(settings: Settings, input_size: int, output_size: int, seed: int) -> Classifier:
    """The network at its seeded start, under BPTT: the same for every rule.

    He initialisation: ``U ~ N(0, 2/m)``, ``W ~ N(0, 2/n)``, biases zero; readout ``U(±1/√n)``.
    """
    n = settings.hidden_size
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        rnn = LeakyRNN(
            input_size,
            n,
            nonlinearity=settings.nonlinearity,
            leak=settings.leak,
            form=settings.form,
        )
        model = Classifier(rnn, output_size)
    with torch.no_grad():
        rnn.get_parameter("weight_ih_l0").normal_(
            0.0, math.sqrt(2 / input_size), generator=generator
        )
        rnn.get_parameter("weight_hh_l0").normal_(0.0, math.sqrt(2 / n), generator=generator)
        rnn.get_parameter("bias_ih_l0").zero_()
        rnn.get_parameter("bias_hh_l0").zero_()
        bound = 1 / math.sqrt(n)
        model.readout.weight.uniform_(-bound, bound, generator=generator)
        model.readout.bias.uniform_(-bound, bound, generator=generator)
    return model


def training_rule(run: RunConfig) -> rules.Rule:
    """The rule that a run trains by: that of its arm's kind."""
    rule = rules.parse(run.rule_spec)
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
