"""Second-order products of any loss function of a dict of parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from .._autograd import in_transform
from .._checks import check_like, check_tensor, scalar_loss
from .._inspection import Inspection
from .._mended import Mended, ToMend, unmended
from .._reverse import (
    OnceDifferentiable,
    gradients,
    refuse_once_differentiable,
    requiring_grad,
    uncompiled,
)
from .._state import exact_gradients

Parameters = dict[str, Tensor]


def _check(loss_fn: Any, params: Any, V: Any) -> tuple[Parameters, Parameters]:
    if not callable(loss_fn):
        raise TypeError(f"loss_fn is a {type(loss_fn).__name__}; expected a function of params")
    for name, value in (("params", params), ("V", V)):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a dict of tensors")
    if set(params) != set(V):
        raise ValueError(f"V has the names {sorted(V)}; expected those of params, {sorted(params)}")
    k = None
    for name, p in params.items():
        check_tensor(f"params[{name!r}]", p)
        v = check_tensor(f"V[{name!r}]", V[name])
        k = v.shape[0] if k is None and v.dim() else k
        if tuple(v.shape) != (k, *p.shape):
            first = "k" if k is None else k
            raise ValueError(
                f"V[{name!r}] has shape {tuple(v.shape)}; expected ({first}, *{tuple(p.shape)})"
            )
        check_like(f"V[{name!r}]", v, p.dtype, p.device, "its parameter")
    if not k:
        raise ValueError("V has k = 0 directions; expected at least one")
    detached = {name: p.detach() for name, p in params.items()}
    return detached, {name: V[name].detach() for name in params}


def _first_possible(forward: Callable[[], Any], reverse: Callable[[], Any]) -> Any:
    """``forward()``, or ``reverse()`` where torch has no forward mode for a gradient.

    So it is with ``mse_loss``, whose target is a constant of the loss function (torch 2.13).
    """
    try:
        return forward()
    except RuntimeError as error:
        if "ZeroTensors are immutable" not in str(error):
            raise
    return reverse()


def _one_by_one(
    loss_fn: Callable[[Parameters], Tensor], at: Parameters, directions: Parameters
) -> Parameters | None:
    """Double backward through one graph, direction by direction; None where that is not to be had.

    For a single direction, and for directions of which each keeps the kernels busy by itself.
    """
    k = len(next(iter(directions.values())))
    try:
        with torch.enable_grad():
            point = requiring_grad({name: p.detach() for name, p in at.items()})
            if k == 1:
                loss = loss_fn(point)
                if unmended(loss):
                    raise ToMend
            else:
                with Inspection() as seen:
                    loss = loss_fn(point)
                if seen.wrong:
                    raise ToMend
            refuse_once_differentiable([loss])
            if k > 1 and not seen.fills:
                return None
            ps = list(point.values())
            g = gradients([loss], ps, [torch.ones_like(loss)], create_graph=True)
        result = {name: torch.empty_like(v) for name, v in directions.items()}
        for i in range(k):
            parts = gradients(g, ps, [v[i] for v in directions.values()])
            for name, part in zip(point, parts, strict=True):
                result[name][i] = part
    except (torch.OutOfMemoryError, OnceDifferentiable):
        raise
    except RuntimeError:  # no second derivative in reverse mode: forward mode may have one
        return None
    return result


def hvp(
    loss_fn: Callable[[Parameters], Tensor], params: Mapping[str, Tensor], V: Mapping[str, Tensor]
) -> Parameters:
    """Hessian-vector products of ``loss_fn`` at ``params`` in k directions.

    Forward over reverse in one batched pass; by double backward through one graph where that is
    faster: for one direction, and for large ones (32 sequences and 256 KiB of activations or more).

    loss_fn: ``loss_fn(params) -> scalar``, differentiable twice, e.g. through
        ``torch.func.functional_call``. The Hessian is that of this loss whatever rules its layers
        have: it is evaluated under `rtrl_ext.exact_gradients`. It may be called more than once.
    params: dict of tensors. V: dict of the same names, (k, *shape) each.

    Returns a dict of the same names, (k, *shape) each. Raises TypeError and ValueError for dicts
    that don't fit and for a ``loss_fn`` whose result is no floating scalar.

    Example:
        loss = lambda p: F.mse_loss(torch.func.functional_call(model, p, (x,))[0], target)
        HV = hvp(loss, dict(model.named_parameters()), V)
    """
    at, directions = _check(loss_fn, params, V)
    try:
        return _hvp(loss_fn, at, directions)
    except ToMend:
        with Mended():
            return _hvp(loss_fn, at, directions)


def _hvp(
    loss_fn: Callable[[Parameters], Tensor], at: Parameters, directions: Parameters
) -> Parameters:
    def loss(p: Parameters) -> Tensor:
        return scalar_loss(loss_fn(p))

    with torch.no_grad(), exact_gradients(), uncompiled():
        plain = not (in_transform() or torch.compiler.is_compiling())
        if plain and (result := _one_by_one(loss, at, directions)) is not None:
            return result

        def product(v: Parameters) -> Parameters:
            return jvp(grad(loss), (at,), (v,))[1]

        def by_reverse_mode() -> Parameters:
            pull = vjp(grad(loss), at)[1]
            return vmap(lambda v: pull(v)[0], randomness="same")(directions)

        return _first_possible(
            lambda: vmap(product, randomness="same")(directions), by_reverse_mode
        )


def ggn_vp(
    loss_fn: Callable[[Parameters], tuple[Any, Callable[[Any], Tensor]]],
    params: Mapping[str, Tensor],
    V: Mapping[str, Tensor],
) -> Parameters:
    """Products with the Gauss-Newton matrix ``Jᵀ H_out J`` in k directions, in one batched pass.

    loss_fn: ``loss_fn(params) -> (output, criterion)``: the model's output, a tensor or a nest of
        tensors, and a function that takes it to the scalar loss. J is the Jacobian of the output,
        H_out the Hessian of the criterion at it.
    params: dict of tensors. V: dict of the same names, (k, *shape) each.

    Returns a dict of the same names, (k, *shape) each. Raises TypeError and ValueError for dicts
    that don't fit, TypeError if ``loss_fn`` returns something else.

    Example:
        def loss_fn(p):
            output = torch.func.functional_call(model, p, (x,))[0]
            return output, lambda y: F.cross_entropy(y[-1], target)
        GV = ggn_vp(loss_fn, dict(model.named_parameters()), V)
    """
    at, directions = _check(loss_fn, params, V)
    criterion: Any = None

    def output_of(p: Parameters) -> Any:
        nonlocal criterion
        result = loss_fn(p)
        if not (isinstance(result, tuple) and len(result) == 2 and callable(result[1])):
            raise TypeError(
                f"loss_fn returned a {type(result).__name__}; "
                "expected (output, function from the output to the loss)"
            )
        output, inner = result

        def criterion(y: Any) -> Tensor:
            return scalar_loss(inner(y))

        return output

    with torch.no_grad(), exact_gradients(), uncompiled():
        output, pull, *_ = vjp(output_of, at)

        def product(v: Parameters, curve: Callable[[Any], Any]) -> Parameters:
            moved = jvp(output_of, (at,), (v,))[1]
            return pull(curve(moved))[0]

        def products(curve: Callable[[Any], Any]) -> Parameters:
            return vmap(lambda v: product(v, curve), randomness="same")(directions)

        fixed = _detached(output)
        return _first_possible(
            lambda: products(lambda moved: jvp(grad(criterion), (fixed,), (moved,))[1]),
            lambda: products(lambda moved: vjp(grad(criterion), fixed)[1](moved)[0]),
        )


def _detached(output: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.detach(), output)
