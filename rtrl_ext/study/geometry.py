"""How far training has turned a network since its start, and how chaotic it is."""

import math

import torch
from torch import Tensor, nn

from ..diagnostics import kernel_alignment, lyapunov, representation_alignment
from .config import Settings
from .network import Classifier, Data, recurrent

#: rows of a tangent kernel at most, where two sequences have fewer
KERNEL_ROWS = 96
KERNEL_SEQUENCES = 16
#: output steps of a tangent kernel at most
KERNEL_STEPS = 8
LYAPUNOV_SEQUENCES = 32
#: times that tangents are made orthonormal at most
LYAPUNOV_PIECES = 64


class _Probe(nn.Module):
    """A network read out at a few of its output steps, evenly spaced, the last among them."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output[_spread(len(output))] if output.dim() == 3 else output


def _spread(steps: int) -> list[int]:
    count = min(steps, KERNEL_STEPS)
    return [steps - 1 - (i * steps) // count for i in range(count)][::-1]


def turned(
    model: Classifier, start: Classifier, data: Data, settings: Settings
) -> dict[str, float | None]:
    """``representation_alignment`` and ``kernel_alignment`` of a network with its start.

    Representations are the outputs of the recurrent layer at the last step (of spiking units: at
    every step) for the first ``curvature_batch`` training sequences. The tangent kernel is that of
    the recurrent matrix, for as many of the first training sequences as give 96 rows (2 to 16), at
    no more than 8 of the output steps. None where a representation or kernel is zero.
    """
    x, _ = data.train.batch(slice(0, settings.curvature_batch))
    steps = "all" if settings.cell == "alif" else "last"
    representation = representation_alignment(model, start, x, layer="rnn", steps=steps)
    rows = data.train.output_size * min(data.train.output_steps or len(x), KERNEL_STEPS)
    count = max(2, min(KERNEL_SEQUENCES, KERNEL_ROWS // rows))
    kernel = kernel_alignment(
        _Probe(model), _Probe(start), x[:, :count].contiguous(), [f"model.{recurrent(model)}"]
    )
    return {
        "representation_alignment": _finite(representation),
        "kernel_alignment": _finite(kernel),
    }


def largest_exponent(model: Classifier, data: Data, settings: Settings) -> float | None:
    """The largest Lyapunov exponent per step by QR, on the first 32 test sequences.

    None with spiking units, and where the tangents vanish.
    """
    if settings.cell == "alif":
        return None
    x, _ = data.test.batch(slice(0, LYAPUNOV_SEQUENCES))
    with torch.no_grad():
        found = lyapunov(model.rnn, x, interval=math.ceil(len(x) / LYAPUNOV_PIECES))
    return _finite(float(found[0]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
