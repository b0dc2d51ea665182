"""Layers of a stream as plain values, and back."""

import copy
from typing import Any

import torch
from torch import Tensor

from .layer import LayerStream
from .records import Record

_LAYER = (
    "index", "time", "states", "fresh", "cut", "learning", "memory", "clock", "looked_back",
    "records",
)  # fmt: skip
_RECORD = ("index", "x", "before", "after", "kept", "fresh", "w_hh", "units", "chain")


def _copy(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().clone()


def _record_dict(r: Record) -> dict[str, Any]:
    keep = r.weights
    return {
        "index": r.index,
        "x": _copy(r.x),
        "before": [_copy(t) for t in r.before],
        "after": [_copy(t) for t in r.after],
        "kept": [_copy(t) for t in r.kept],
        "fresh": _copy(r.fresh),
        "pre": _copy(r.pre),
        "w_hh": _copy(keep.w_hh),
        "units": [_copy(t) for t in keep.units],
        "chain": [_copy(t) for t in keep.chain],
    }


def layer_dict(layer: LayerStream) -> dict[str, Any]:
    """All that a layer needs to go on."""
    learner = layer.learner
    looked = [] if learner is None else learner.looked_back()
    records = [*looked, *layer.waiting]
    return {
        "index": layer.index,
        "time": layer.time,
        "states": [_copy(s) for s in layer.states],
        "fresh": _copy(layer.starting()),
        "cut": layer.cut,
        "learning": None if learner is None else sorted(learner.wanted),
        "memory": {} if learner is None else {k: _copy(t) for k, t in learner.memory().items()},
        "clock": None if learner is None else _copy(learner.clock),
        "looked_back": len(looked),
        "records": [_record_dict(r) for r in records],
    }


def check_keys(what: str, saved: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """A dict with these keys: TypeError or ValueError."""
    if not isinstance(saved, dict):
        raise TypeError(f"state_dict: {what} is a {type(saved).__name__}; expected a dict")
    missing = [name for name in names if name not in saved]
    if missing:
        raise ValueError(f"state_dict: {what} lacks {', '.join(missing)}")
    return saved


def _check_tensors(what: str, saved: Any, mine: Any) -> None:
    """Sequences or dicts of tensors or None, like ``mine`` in number, names, dtypes and shapes."""
    if isinstance(mine, dict):
        if not isinstance(saved, dict) or saved.keys() != mine.keys():
            came = sorted(saved) if isinstance(saved, dict) else type(saved).__name__
            raise ValueError(f"state_dict: {what} has {came}; expected {sorted(mine)}")
        saved, mine = [saved[name] for name in mine], list(mine.values())
    if not isinstance(saved, list | tuple):
        raise TypeError(f"state_dict: {what} is a {type(saved).__name__}; expected a list")
    if len(saved) != len(mine):
        raise ValueError(f"state_dict: {what} has {len(saved)} tensors; expected {len(mine)}")
    for a, b in zip(saved, mine, strict=True):
        if not isinstance(a, Tensor | None) or not isinstance(b, Tensor | None):
            raise TypeError(f"state_dict: {what} holds a {type(a).__name__}; expected a tensor")
        if a is None or b is None:
            if a is not b:
                came = "None" if a is None else "a tensor"
                raise ValueError(f"state_dict: {what} is {came}; expected the other")
        elif a.dtype != b.dtype:
            raise TypeError(f"state_dict: {what} has dtype {a.dtype}; expected {b.dtype}")
        elif a.shape != b.shape:
            raise ValueError(
                f"state_dict: {what} has shape {tuple(a.shape)}; expected {tuple(b.shape)}"
            )


def load_layer(layer: LayerStream, saved: Any, inputs: int) -> None:
    """Put a layer's part in place; TypeError or ValueError for that of another layer.

    inputs: m. ``layer`` is of no use after an error.
    """
    check_keys("a layer", saved, _LAYER)
    like = layer.like

    def there(t: Any) -> Any:
        return None if t is None else t.detach().clone().to(like.device)

    fresh = torch.zeros(layer.batch, dtype=torch.bool)
    _check_tensors("a state", saved["states"], layer.states)
    if saved["fresh"] is not None:
        _check_tensors("fresh", [saved["fresh"]], [fresh])
    layer.index, layer.time = saved["index"], saved["time"]
    layer.states = tuple(there(s) for s in saved["states"])
    layer.fresh, layer.cut = there(saved["fresh"]), saved["cut"]
    layer.weights = layer.gate = layer.last = None
    now = layer.read(False)
    records = []
    for r in saved["records"]:
        check_keys("a step", r, _RECORD)
        _check_tensors("a step's input", [r["x"]], [like.new_empty(layer.batch, inputs)])
        if r["fresh"] is not None:
            _check_tensors("a step's fresh", [r["fresh"]], [fresh])
        for name in ("before", "after"):
            _check_tensors(f"a step's {name}", r[name], layer.states)
        _check_tensors("a step's weights", [r["w_hh"], *r["chain"]], [now.w_hh, *now.chain])
        _check_tensors("a step's constants", r["units"], now.units)
        weights = copy.copy(now)
        weights.w_hh = there(r["w_hh"])
        weights.units = tuple(there(t) for t in r["units"])
        weights.chain = tuple(there(t) for t in r["chain"])
        before, after, kept = (
            tuple(there(t) for t in r[name]) for name in ("before", "after", "kept")
        )
        record = Record(r["index"], there(r["x"]), before, after, kept, weights, there(r["fresh"]))
        record.pre = there(r.get("pre"))
        records.append(record)
    layer.learner = None
    if saved["learning"] is not None:
        wanted = frozenset(saved["learning"])
        there_are = {name for name, t in now.tensors.items() if t is not None}
        if not wanted <= there_are:
            missing = ", ".join(sorted(wanted - there_are))
            raise ValueError(f"state_dict: has traces of {missing}, which the module lacks")
        layer.learner = layer.make(wanted)
        layer.learner.look_back(records[: saved["looked_back"]])
        memory = layer.learner.memory()
        _check_tensors("learning memory", saved["memory"], memory)
        for name, t in saved["memory"].items():
            memory[name].copy_(t)
        clock = layer.learner.clock
        _check_tensors("clock", [saved["clock"]], [clock])
        if clock is not None:
            clock.copy_(saved["clock"])
    layer.waiting = records[saved["looked_back"] :]


def check_refill(layer: LayerStream, new: LayerStream) -> None:
    """RuntimeError unless ``new``, as loaded, fits into the memory of a layer in a CUDA graph."""
    if new.waiting:
        raise RuntimeError(
            f"state_dict: {len(new.waiting)} steps wait for a loss, and this state's memory "
            "belongs to a CUDA graph: save after a backward pass, or load into a new state and "
            "capture that"
        )
    learner = layer.learner
    if new.learner is not None and (learner is None or new.learner.wanted != learner.wanted):
        raise RuntimeError(
            "state_dict: other parameters took gradients, and this state's memory belongs to a "
            "CUDA graph: load into a new state and capture that"
        )


def refill(layer: LayerStream, new: LayerStream) -> None:
    """Write ``new``, as loaded, into the memory of a layer in a CUDA graph."""
    home, mine = layer.home, layer.learner
    assert home is not None
    home.write(new.states)
    home.fresh.fill_(new.cut)
    if new.fresh is not None:
        home.fresh.logical_or_(new.fresh)
    if mine is not None:
        learner = new.make(mine.wanted) if new.learner is None else new.learner
        memory = learner.memory()
        for name, t in mine.memory().items():
            t.copy_(memory[name])
        if mine.clock is not None and learner.clock is not None:
            mine.clock.copy_(learner.clock)
    layer.drop()
