"""Parameters of a layer as blocks, matrices whose columns share what they multiply."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .learner import Setting, biases
from .records import Gradients, Record


class Block(NamedTuple):
    """Columns of a weight, if ``weight``, and a last one for biases, if ``ones``."""

    weight: bool
    ones: bool
    columns: int

    @property
    def size(self) -> int:
        """The number of columns that there are."""
        return self.weight * self.columns + self.ones


class Blocks(dict[str, Block]):
    """ "ih", the input weight with the biases, and "hh", the recurrent weight (in a GRU with biases
    of its own): those of them that take gradients."""

    def __init__(self, setting: Setting) -> None:
        self.cell, self.wanted = setting.cell, setting.wanted
        ones = bool({"b_ih", "b_hh"} & self.wanted)
        apart = self.cell.parts != self.cell.gates
        both = {
            "ih": Block("w_ih" in self.wanted, ones, setting.inputs),
            "hh": Block("w_hh" in self.wanted, ones and apart, setting.hidden),
        }
        super().__init__({name: block for name, block in both.items() if block.size})

    def pre(self, name: str, record: Record) -> Tensor:
        """What a block multiplies at a step, (B, columns)."""
        block = self[name]
        x = record.x if name == "ih" else self.cell.output(record.before)
        if not block.ones:
            return x
        one = self.cell.constant(1.0, (x.shape[0], 1), x)
        return torch.cat([x, one], 1) if block.weight else one

    def psi(self, name: str, psi: Tensor) -> Tensor:
        """The part (..., G n) of factors psi that belongs to a block."""
        return self.cell.into_input(psi) if name == "ih" else self.cell.into_output(psi)

    def parameters(self, grads: Mapping[str, Tensor]) -> Gradients:
        """Gradients (R, columns) of all blocks as those of weights and biases."""
        found: Gradients = {}
        bias: dict[str, Tensor] = {}
        for name, block in self.items():
            if block.weight:
                found[f"w_{name}"] = grads[name][:, : block.columns]
            if block.ones:
                bias[name] = grads[name][:, -1].clone()
        if bias:
            biases(found, bias["ih"], bias.get("hh", bias["ih"]), self.wanted)
        return found
