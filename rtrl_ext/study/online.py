"""Arms of kind ``online``: an update at every step, in streaming mode."""

import math
from dataclasses import fields, replace

from torch import Tensor

from .. import rules
from ..tasks import Task
from .config import RunConfig
from .network import Classifier, training_rule
from .updates import Diverged, Updates


def check_online(run: RunConfig) -> None:
    """``ValueError`` if an arm of kind ``online`` can't be: its rule has no streaming mode or, with
    spiking units, no filtered traces; or it is combined with SAM.
    """
    if run.kind != "online":
        return
    if run.settings.sam_rho:
        raise ValueError(
            f"sam_rho: got {run.settings.sam_rho} in the arm {run.arm!r} of kind online, expected "
            "0: SAM passes through a sequence twice"
        )
    rule = training_rule(run)
    try:
        rule.streaming(run.settings.cell)
    except ValueError as error:
        raise ValueError(f"rules: {run.rule!r} in the arm {run.arm!r}: {error}") from error
    if run.settings.cell == "alif" and not _filters(rule):
        raise ValueError(
            f"rules: {run.rule!r} in the arm {run.arm!r} of kind online with spiking units, "
            "expected eprop: the readout is filtered, and only e-prop filters its traces alike"
        )


def _filters(rule: rules.Rule) -> bool:
    return any(f.name == "readout_decay" for f in fields(rule))  # type: ignore[arg-type]


def set_rule(model: Classifier, run: RunConfig) -> None:
    """Give the network the rule that the run trains by; ``ValueError`` if they don't go together.

    In arms of kind ``online`` traces are filtered as the readout is.
    """
    check_online(run)
    rule = training_rule(run)
    if run.kind == "online":
        if model.decay is not None:
            rule = replace(rule, readout_decay=model.decay)  # type: ignore[type-var]
        model.rnn.rule = rule
        x = model.readout.weight.new_zeros(1, model.rnn.input_size)
        model.rnn.step(x, model.rnn.init_state(1))  # its learner may refuse the layer
    model.rnn.rule = rule


class OnlineUpdates(Updates):
    """One update at every step at which the task has a loss.

    A batch's sequences are the rows of one stream, which starts at rest. At each of the L steps
    with a loss the gradient is that of the step's share ``ℓ_t / L`` of the loss, from traces
    that reach back to the beginning of the sequence, made with the weights of each step. So a
    sequence's gradients sum up to that of sequence mode as the rate goes to zero. SGD takes η at
    each of them, and the factor of L2 divided by L; Adam, whose steps don't shrink with the
    gradient, takes η/L. A task with a loss at the last step alone has one update a sequence, the
    same as in sequence mode.
    """

    def __init__(self, run: RunConfig, model: Classifier, task: Task, lr: float) -> None:
        super().__init__(run, model, task, lr)
        self._steps = task.output_steps or task.x.shape[1]
        self._time_targets = task.time_targets
        for group in self.optimizer.param_groups:
            group["weight_decay"] /= self._steps

    def _set_rate(self, rate: float) -> None:
        adam = self.settings.optimizer == "adam"
        super()._set_rate(rate / self._steps if adam else rate)

    def _update(self, x: Tensor, target: Tensor) -> None:
        model, filtered = self.model, None
        state = model.rnn.init_state(x.shape[1])
        first = len(x) - self._steps
        for t, x_t in enumerate(x):
            y, state = model.rnn.step(x_t, state)
            if model.decay is not None:
                # earlier spikes reach this loss through the rule's filtered traces
                filtered = y if filtered is None else model.decay * filtered.detach() + y
                y = filtered
            if t < first:
                continue
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(model.readout(y), target, t) / self._steps
            if not math.isfinite(float(loss.detach())):
                raise Diverged
            loss.backward()  # type: ignore[no-untyped-call]
            self._step()

    def _loss(self, output: Tensor, target: Tensor, t: int) -> Tensor:
        if self._time_targets:
            return self.loss_fn(output.unsqueeze(0), target[t : t + 1])
        return self.loss_fn(output, target)
