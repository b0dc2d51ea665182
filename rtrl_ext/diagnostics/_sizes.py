"""Sizes of what a layer keeps and counts of what it computes, as formulas: nothing is allocated."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._snap_pattern import _WHOLE as WHOLE
from .._snap_pattern import reachable
from .._stream.cells import NONE, StepCell
from .._stream.dni import Dni
from .._stream.gated import Gated
from .._stream.influence import Influence
from .._stream.kernl import Kernl
from .._stream.leaky import Leaky
from .._stream.learner import Learner
from .._stream.lru import Linear
from .._stream.rank_one import RankOne
from .._stream.rolling import Rolling
from .._stream.spiking import Spiking
from .._stream.stochastic import Kronecker, Uoro
from .._stream.traces import Traces
from ..reference.alif import ZERO
from ..rules import MDGL, ModProp, Rule
from ..rules.base import DIAGONAL, LOCAL
from ..rules.wrappers import Wrapper

Bytes = dict[str, int]
#: numbers per unit of an LRU that are the same for all rows: `StepConstants` with what they share
LRU_CONSTANTS = 18


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer, as far as sizes go.

    inputs m, hidden n, outputs o (of an LRU; else n), units: per-unit constants that are trained.
    size, own: bytes of a number as computed, and as the parameters are stored. mask: (n, n) bool on
    the CPU.
    """

    step: StepCell
    place: int
    batch: int
    inputs: int
    hidden: int
    outputs: int
    units: int
    wanted: frozenset[str]
    bias: bool
    size: int
    own: int
    mask: Tensor | None
    counts: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> int:
        """G n."""
        return self.step.gates * self.hidden

    @property
    def columns(self) -> int:
        """P: inputs of a row of the weights, the bias among them."""
        own = self.hidden if self.step.reaches else 0
        return self.inputs + own + self.bias

    @property
    def learns_bias(self) -> bool:
        return bool({"b_ih", "b_hh"} & self.wanted)


def step_numbers(layer: Layer) -> dict[str, int]:
    """Numbers per unit and row of what a step of streaming mode leaves: states, and what is kept
    beside them."""
    cell = layer.step
    if isinstance(cell, Linear):
        return {"s": 2, "kept": 2}
    if isinstance(cell, Spiking):
        adapts = int(cell.adapts)
        there = (1, 1, adapts, int(cell.options.refractory > 0), 1, adapts)
        return {name: k for name, k in zip(cell.names, there, strict=True) if k}
    numbers = dict.fromkeys(cell.names, 1)
    if isinstance(cell, Gated):
        return numbers | {"aux": _gated_aux(cell)}
    assert isinstance(cell, Leaky)
    return numbers if cell.unit_leak else numbers | {"aux": 1}


def _gated_aux(cell: Gated) -> int:
    """r, z, q and the product under r; i, f, g, o and c."""
    return 4 if cell.states == 1 else 5


def state_numbers(layer: Layer) -> int:
    """Numbers per unit and row of the internal states."""
    return sum(k for name, k in step_numbers(layer).items() if name not in ("aux", "kept"))


def backward_numbers(layer: Layer, wrapped: bool) -> dict[str, int]:
    """Numbers per step, unit and row that a forward pass of sequence mode saves for a backward pass
    that runs back in time."""
    cell = layer.step
    if isinstance(cell, Linear):
        return {"states": 2}
    if isinstance(cell, Gated):
        return {"y": 1, "aux": _gated_aux(cell)}
    if isinstance(cell, Spiking):
        whole = wrapped or layer.units > 0
        kept = {"z": 1, "psi": 1}
        if whole or cell.options.reset == ZERO:
            kept["v"] = 1
        if whole and cell.adapts:
            kept["a"] = 1
        return kept
    assert isinstance(cell, Leaky)
    return {"y": 1} if cell.unit_leak else {"y": 1, "aux": 1}


def factor_numbers(layer: Layer, learner: Learner) -> int:
    """Numbers per unit and row of a step's derivatives, see `Factors`."""
    cell, s = layer.step, layer.step.states
    if isinstance(learner, Rolling):  # only for what goes to the layer below
        return s * cell.parts * (layer.place > 0)
    if isinstance(cell, Linear):  # the rest is the same for all rows
        return s * layer.units * learner.want_units
    decay = isinstance(learner, Influence | Uoro | Kronecker) or learner.policy != NONE
    return s * cell.parts + s * s * decay + s * layer.units * learner.want_units


def constant_numbers(layer: Layer, learner: Learner) -> int:
    """Numbers per unit that last, of all rows: the seeds of factors, and in an LSTM what c gets of
    the output's gradient; in an LRU the factor ψ, of which there is one for all rows."""
    if isinstance(learner, Rolling | Dni) and layer.place == 0:
        return 0
    if isinstance(layer.step, Linear):
        return 4
    return layer.batch * (1 + (isinstance(layer.step, Gated) and layer.step.states == 2))


def held_steps(learner: Learner) -> int:
    """Steps that are held when the rule has been brought up to date at the last of them."""
    if isinstance(learner, Rolling):
        return learner.k
    hops = getattr(learner, "hops", None)
    return 1 if hops is None else int(hops.taps) + 1


def learning_bytes(layer: Layer, learner: Learner) -> int:
    """Bytes of ``Learner.memory()``."""
    s, n, m, r, b = layer.step.states, layer.hidden, layer.inputs, layer.rows, layer.batch
    w_ih, w_hh = "w_ih" in layer.wanted, "w_hh" in layer.wanted
    ones, apart = layer.learns_bias, layer.step.parts != layer.step.gates
    in_block, own_block = w_ih * m + ones, w_hh * n + (ones and apart)
    if isinstance(learner, Traces):
        s += bool(learner.filtered)
        numbers = s * (r * (in_block + own_block) + layer.units * n)
    elif isinstance(learner, RankOne):
        numbers = w_ih * m + w_hh * n + ones
        if learner.hops is not None:  # the inputs as filtered at the steps that are held
            numbers *= 1 + held_steps(learner)
    elif isinstance(learner, Rolling):
        numbers = 0
    elif isinstance(learner, Influence):
        numbers = _influence_numbers(layer, learner, in_block, own_block)
    elif isinstance(learner, Uoro):
        numbers = r * (in_block + own_block) + layer.units * n + s * n + 1
    elif isinstance(learner, Kronecker):
        numbers = max(1, learner.terms) * (m + n + 1 + s * n * r)
    elif isinstance(learner, Dni):
        width = (s + learner.beside) * n
        numbers = 2 * (width + n + 1) + width
    else:
        raise ValueError(f"the sizes of {type(learner).__name__} aren't known")
    shared = 0  # by the rows of the batch
    if isinstance(learner, Kernl):
        numbers += 3 * n * learner.perturbs
        shared = n * n * learner.how.learns + n * (learner.how.decay_rate > 0)
    elif isinstance(learner, Dni):
        shared = width * (width + n + 1) + r * (w_ih * m + w_hh * n + ones * (1 + apart))
        shared += layer.units * n
    return (b * numbers + shared) * layer.size


def pattern_counts(layer: Layer, k: int) -> tuple[list[int], list[int]]:
    """Of every unit p: how many units SnAp(k) reaches from it, and how many connections it has."""
    n, mask = layer.hidden, layer.mask
    if mask is None:
        return [1 if k == 1 else n] * n, [n] * n
    if k not in layer.counts:
        layer.counts[k] = reachable(mask, k).sum(1).tolist(), mask.sum(1).tolist()
    return layer.counts[k]


def _influence_numbers(layer: Layer, learner: Influence, in_block: int, own_block: int) -> int:
    s, n, g = layer.step.states, layer.hidden, layer.step.gates
    units = s * n * layer.units * n
    if not learner.k:
        return s * n * layer.rows * (in_block + own_block) + units
    reached, heard = pattern_counts(layer, learner.k)
    there = "w_hh" in layer.wanted
    own = [(c + own_block - n) if there else own_block for c in heard]
    return s * g * sum(k * (in_block + c) for k, c in zip(reached, own, strict=True)) + units


def _weight_copies(layer: Layer, keeps: bool) -> int:
    """Bytes of what is made of the parameters for a step or a forward pass of forward mode."""
    m, r, size = layer.inputs, layer.rows, layer.size
    if not layer.step.reaches:
        return 2 * r * m * size + LRU_CONSTANTS * layer.hidden * size
    half = layer.own != layer.size
    copies = r * layer.bias * size
    if keeps or half or layer.mask is not None:
        copies += r * layer.hidden * size
    return copies + half * r * (m + layer.bias) * size


def streaming_bytes(layer: Layer, learner: Learner) -> Bytes:
    """Bytes by kind, with a loss and new parameters at every step."""
    n, b, held = layer.hidden, layer.batch, held_steps(learner)
    record = layer.inputs + n * (sum(step_numbers(layer).values()) + factor_numbers(layer, learner))
    record += layer.rows * learner.keeps_pre
    if isinstance(learner, RankOne) and learner.hops is not None and not learner.decay:
        # what was filtered is the input and the output before
        record -= ("w_ih" in layer.wanted) * layer.inputs + ("w_hh" in layer.wanted) * n
    found = {
        "learning": learning_bytes(layer, learner),
        "states": b * n * state_numbers(layer) * layer.size,
        "records": b * held * record * layer.size,
        "weights": held * _weight_copies(layer, learner.keeps_weights),
        "constants": n * constant_numbers(layer, learner) * layer.size,
    }
    if isinstance(learner, Influence) and learner.k:
        found["pattern"] = pattern_bytes(layer, learner.k)
    return found


def pattern_bytes(layer: Layer, k: int) -> int:
    """Bytes of the lists that say which entries SnAp(k) keeps, see `Pattern`."""
    n = layer.hidden
    reached, heard = pattern_counts(layer, k)
    own = layer.step.parts != layer.step.gates and layer.learns_bias
    there = "w_hh" in layer.wanted
    of_input = ("w_ih" in layer.wanted) * layer.inputs + layer.learns_bias
    columns = [n * of_input, sum(heard) * there + n * own]
    shared = 12 * sum(reached) + 8 * _links(layer, k) + 8 * _connections(layer) + 8 * (4 * n + 4)
    return sum(shared + 4 * c for c in columns if c) + layer.step.states * n * n


def _hears(layer: Layer) -> Tensor:
    assert layer.mask is not None
    return layer.mask | torch.eye(layer.hidden, dtype=torch.bool)


def _connections(layer: Layer) -> int:
    """Pairs of units one of which hears of the other, or is it."""
    return layer.hidden**2 if layer.mask is None else int(_hears(layer).sum())


def _links(layer: Layer, k: int) -> int:
    """Pairs that are listed one by one, over all units' neighbourhoods."""
    if layer.mask is None:
        return 0
    reach = reachable(layer.mask, k).float()
    pairs = ((reach @ _hears(layer).float()) * reach).sum(1)
    return int(pairs[pairs <= WHOLE * reach.sum(1) ** 2].sum())


def waiting_bytes(layer: Layer) -> int:
    """Bytes of a step without a loss that waits to be taken up."""
    numbers = layer.inputs + layer.hidden * sum(step_numbers(layer).values())
    return layer.batch * numbers * layer.size


def sequence_bytes(layer: Layer, rule: Rule, steps: int, learner: Learner | None) -> Bytes:
    """Bytes by kind of what lasts from the forward pass to the backward pass; learner: of a rule
    that runs forward in time, whose memory and factors are made in the backward pass."""
    m, n, rows, r = layer.inputs, layer.hidden, steps * layer.batch, layer.rows
    half = layer.own != layer.size
    if learner is not None:
        kept = {k: rows * n * v * layer.size for k, v in step_numbers(layer).items()}
        if half or layer.place > 0:
            kept["input"] = rows * m * layer.size
        weights = _weight_copies(layer, True)
        if not layer.step.reaches:
            kept["outputs"] = rows * 2 * n * layer.size
            weights += 2 * n * layer.outputs * layer.size
        kept["weights"] = weights
        kept["factors"] = rows * n * factor_numbers(layer, learner) * layer.size
        if isinstance(learner, Influence) and learner.k:
            kept["pattern"] = pattern_bytes(layer, learner.k)
        return kept | {"learning": learning_bytes(layer, learner)}
    wrapped = isinstance(rule, Wrapper)
    runs = 1 + len(rule.references()) if isinstance(rule, Wrapper) else 1
    kept = {k: rows * n * v * layer.size for k, v in backward_numbers(layer, wrapped).items()}
    weights = 0
    if not layer.step.reaches:
        weights = 2 * n * (m + layer.outputs) * layer.size
    elif isinstance(layer.step, Leaky):
        if half and layer.place > 0:
            kept["input"] = rows * m * layer.own
    elif half:
        kept["input"] = rows * m * layer.size
        weights += r * (m + 2 * layer.bias) * layer.size
    if layer.step.reaches and (half or layer.mask is not None):
        weights += r * n * layer.size
    if isinstance(rule, MDGL | ModProp) and isinstance(layer.step, Leaky | Spiking):
        weights += r * n * layer.size * (not isinstance(rule, ModProp) or rule.native)  # of hops
    if layer.mask is not None and layer.step.gates > 1:
        weights += r * n  # the mask, for every gate
    return {k: runs * v for k, v in (kept | {"weights": weights}).items()}


# arithmetic of one step: products of matrices and passes over traces, 2 for a product and a sum


def forward_flops(layer: Layer) -> int:
    """Of the activity."""
    b, n, m = layer.batch, layer.hidden, layer.inputs
    if not layer.step.reaches:
        return 4 * b * n * m + 8 * b * n + 2 * b * layer.outputs * (2 * n + m)
    return 2 * b * layer.rows * (m + n)


def _beside(layer: Layer) -> int:
    """Gradients of the layer below and, in an LRU, of the map out and through it."""
    b, n, m, o = layer.batch, layer.hidden, layer.inputs, layer.outputs
    if not layer.step.reaches:
        return 2 * b * o * (2 * n + m) + 4 * b * o * n
    return 2 * b * layer.rows * m * (layer.place > 0)


def backward_flops(layer: Layer, rule: Rule, spec: Mapping[str, Any], steps: int) -> int:
    """Of learning back in time; ``spec`` is what the rule's ``policy`` gives."""
    b, n, r, p = layer.batch, layer.hidden, layer.rows, layer.columns
    weights = 2 * b * r * p
    if not layer.step.reaches:
        return weights + 8 * b * n + _beside(layer)
    across = 2 * b * r * n
    if "adjoint" in spec:
        across *= min(rule.taps or 1, steps) if isinstance(rule, ModProp) else 0
    elif spec["policy"] in (LOCAL, DIAGONAL) or spec.get("window") == 1:
        across = 0
    return weights + across + _beside(layer)


def streaming_flops(layer: Layer, learner: Learner) -> int:
    """Of learning as time goes on, with a loss at every step."""
    b, n, r, p, s = layer.batch, layer.hidden, layer.rows, layer.columns, layer.step.states
    hops = getattr(learner, "hops", None)
    taps = 0 if hops is None else hops.taps
    if isinstance(learner, RankOne):
        own = 2 * b * p + 2 * b * r * p * (taps + 1)
    elif isinstance(learner, Traces):
        again = 1 if hops is None else taps + 2  # the steps that are held, and the new one
        own = again * 4 * b * (s + bool(learner.filtered)) * r * p
        if isinstance(learner, Kernl):
            own += (2 * b * r * n + 8 * b * n * n) * learner.perturbs
    elif isinstance(learner, Rolling):
        own = learner.k * (2 * b * r * p + (2 * b * r * n if layer.step.reaches else 8 * b * n))
    elif isinstance(learner, Influence) and learner.k:
        reached, heard = pattern_counts(layer, learner.k)
        each = (k * k * (p - n + c) for k, c in zip(reached, heard, strict=True))
        own = 2 * b * s * s * layer.step.gates * sum(each)
    elif isinstance(learner, Influence):
        own = 2 * b * (s * n) ** 2 * r * p
    elif isinstance(learner, Uoro):
        own = 2 * b * (s * n) ** 2 + 4 * b * r * p
    elif isinstance(learner, Kronecker):
        own = max(1, learner.terms) * 2 * b * (s * n) ** 2 * r
    elif isinstance(learner, Dni):
        own = 2 * b * r * (p + n) + 6 * b * (s + learner.beside) ** 2 * n * n
    else:
        raise ValueError(f"the arithmetic of {type(learner).__name__} isn't known")
    return own + taps * 2 * b * n * n + _beside(layer)
