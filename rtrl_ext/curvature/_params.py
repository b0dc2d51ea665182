"""Selection of parameters by name, and their flattening to one vector of length P."""

import difflib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``'s, ``DataParallel``'s and
    ``DistributedDataParallel``'s wrappers, or ``model`` itself."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    while True:
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = model.module if parallel else getattr(model, "_orig_mod", model)
        if inner is model or not isinstance(inner, nn.Module):
            return model
        model = inner


def select(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """The chosen parameters of ``model`` in ``named_parameters()`` order.

    ``names`` None means every parameter with ``requires_grad``. A frozen parameter can be chosen
    by name. Of tied parameters only the first name counts, as in ``named_parameters()``.

    Raises:
        TypeError: ``names`` is a string or holds something else than strings; the parameters have
            different dtypes or are not floating.
        ValueError: an unknown or repeated name, no parameter at all, different devices.
    """
    known = dict(model.named_parameters())
    if names is None:
        chosen = {name: p for name, p in known.items() if p.requires_grad}
        if not chosen:
            raise ValueError("params: the model has no parameter with requires_grad=True")
    else:
        chosen = _by_name(model, known, names)
    _check_uniform(chosen)
    return chosen


def _by_name(
    model: nn.Module, known: dict[str, nn.Parameter], names: Iterable[str]
) -> dict[str, nn.Parameter]:
    if isinstance(names, str):
        raise TypeError(f"params: got the string {names!r}, expected a sequence: [{names!r}]")
    if not isinstance(names, Iterable):
        raise TypeError(f"params: got {type(names).__name__}, expected a sequence of names")
    wanted: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"params: got an entry of type {type(name).__name__}, expected str")
        if name not in known:
            raise ValueError(_unknown(model, known, name))
        if name in wanted:
            raise ValueError(f"params: {name!r} is given twice")
        wanted.add(name)
    if not wanted:
        raise ValueError("params: got no name, expected at least one")
    return {name: p for name, p in known.items() if name in wanted}


def _unknown(model: nn.Module, known: dict[str, nn.Parameter], name: str) -> str:
    aliases = dict(model.named_parameters(remove_duplicate=False))
    if name in aliases:
        first = next(n for n, p in known.items() if p is aliases[name])
        return f"params: {name!r} is tied to {first!r}; use that name"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:8]
    return f"params: no parameter is named {name!r}; nearest: {', '.join(map(repr, near))}"


def _check_uniform(chosen: Mapping[str, Tensor]) -> None:
    first_name, first = next(iter(chosen.items()))
    for name, p in chosen.items():
        if isinstance(p, nn.UninitializedParameter):
            raise ValueError(f"params: {name!r} is uninitialized; run the model once first")
        if not p.is_floating_point():
            raise TypeError(f"params: {name!r} is {p.dtype}, expected a real floating dtype")
        if p.dtype != first.dtype:
            raise TypeError(
                f"params: {name!r} is {p.dtype} but {first_name!r} is {first.dtype}; "
                "expected one dtype"
            )
        if p.device != first.device:
            raise ValueError(
                f"params: {name!r} is on {p.device} but {first_name!r} is on {first.device}; "
                "expected one device"
            )


def size(params: Mapping[str, Tensor]) -> int:
    """P, the number of entries of all parameters together."""
    return sum(p.numel() for p in params.values())


def unflatten(rows: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``rows`` (..., P) as tensors ``(..., *shape)`` by name."""
    parts = rows.split([p.numel() for p in params.values()], dim=-1)
    lead = rows.shape[:-1]
    return {
        name: part.reshape(*lead, *p.shape)
        for (name, p), part in zip(params.items(), parts, strict=True)
    }


def flatten(tensors: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Tensor:
    """The inverse of ``unflatten``: (..., P)."""
    parts = []
    for name, p in params.items():
        x = tensors[name]
        parts.append(x.reshape(*x.shape[: x.dim() - p.dim()], p.numel()))
    return torch.cat(parts, -1)
