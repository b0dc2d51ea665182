"""Losses and measures of what a network reads out, over the steps that a task asks about."""

import torch
from torch import Tensor
from torch.nn import functional as F


def _window(output: Tensor, steps: int) -> Tensor:
    """The last ``steps`` of ``(T, B, C)`` (all, if fewer), or ``(B, C)`` as one step."""
    if output.dim() == 2:
        return output.unsqueeze(0)
    if output.dim() == 3:
        return output[-steps:]
    raise ValueError(f"model_output: got shape {tuple(output.shape)}, expected (T, B, C) or (B, C)")


class DecisionLoss:
    """Cross-entropy of a class per sequence, the mean over the last ``steps`` and the batch.

    Called with logits ``(T, B, C)``, or ``(B, C)`` at a single step, and classes ``(B,)`` int64.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps

    def __call__(self, model_output: Tensor, target: Tensor) -> Tensor:
        logits = _window(model_output, self.steps)
        if logits.shape[0] == 1:
            return F.cross_entropy(logits[0], target)
        return F.cross_entropy(logits.flatten(0, 1), target.expand(logits.shape[:2]).reshape(-1))

    def __repr__(self) -> str:
        return f"DecisionLoss(steps={self.steps})"


def decision_accuracy(output: Tensor, target: Tensor, steps: int) -> float:
    """Share of sequences whose class has the largest mean log-probability over the last steps."""
    logits = _window(output.detach(), steps)
    votes = logits[0] if logits.shape[0] == 1 else logits.log_softmax(-1).sum(0)
    return float((votes.argmax(-1) == target).double().mean())


class StepLoss:
    """Mean squared error at every step: output and target ``(T, B, d)``, the mean of all entries.

    ``ValueError`` if their shapes differ.
    """

    def __call__(self, model_output: Tensor, target: Tensor) -> Tensor:
        _same(model_output, target)
        return F.mse_loss(model_output, target)

    def __repr__(self) -> str:
        return "StepLoss()"


def normalised_error(output: Tensor, target: Tensor) -> float:
    """Squared error over that of the best constant prediction of each sequence and output.

    Sequences and outputs weigh the same. 0 is perfect, 1 what a constant reaches: 1 minus the
    explained share of the variance.
    """
    _same(output, target)
    error = (output.detach() - target).double().square().mean(0)
    return float((error / target.double().var(0, correction=0)).mean())


class ActionLoss:
    """Cross-entropy of a class at every step: logits ``(T, B, C)``, classes ``(T, B)`` int64."""

    def __call__(self, model_output: Tensor, target: Tensor) -> Tensor:
        if model_output.shape[:-1] != target.shape:
            raise ValueError(
                f"model_output: got shape {tuple(model_output.shape)}, expected (T, B, C) with "
                f"(T, B) = {tuple(target.shape)}"
            )
        return F.cross_entropy(model_output.flatten(0, -2), target.reshape(-1))

    def __repr__(self) -> str:
        return "ActionLoss()"


def action_accuracy(output: Tensor, target: Tensor) -> float:
    """Share of right classes at the steps whose class is not 0 (fixation), or at all if none is."""
    asked = target != 0
    right = output.detach().argmax(-1) == target
    return float((right[asked] if bool(torch.any(asked)) else right).double().mean())


def _same(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(
            f"model_output: got shape {tuple(output.shape)}, expected {tuple(target.shape)}"
        )
