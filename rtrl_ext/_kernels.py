"""The kernels in use: the compiled operations, or their reference in plain PyTorch.

Also what both need to be good PyTorch operations: shapes for tracing (``register_fake``) and the
rule by which ``vmap`` folds its dimension into the leading one. Their derivatives are in
``_functorch``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._dtypes import computed
from .reference import library as _reference

try:
    from . import _C  # type: ignore[attr-defined]
except ImportError:
    HAVE_COMPILED = False
    CUDA_ARCHITECTURES = ""
else:
    HAVE_COMPILED = True
    CUDA_ARCHITECTURES = _C.build_info()["cuda_architectures"]

NO_CUDA = (
    "this build of rtrl_ext has no CUDA kernels: build it where nvcc is on PATH "
    "(pip install --no-build-isolation --force-reinstall --no-deps .; rtrl-ext info shows what was "
    "compiled), or move model and data to the CPU"
)

#: Which gradients a layer operation is to make.
NEED_X, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_BIAS, NEED_DELTA, NEED_INITIAL = (1, 2, 4, 8, 16, 32)
NEED_UNITS = 64

NAMESPACES = ("rtrl_ext",) * HAVE_COMPILED + (_reference.NAMESPACE,)


class Kernels(NamedTuple):
    """The four operations of one implementation."""

    leaky_forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    leaky_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    leaky_forward_jvp: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    leaky_backward_jvp: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def _load(namespace: str) -> Kernels:
    ops = getattr(torch.ops, namespace)
    return Kernels(*(getattr(ops, name).default for name in Kernels._fields))


_all = {namespace: _load(namespace) for namespace in NAMESPACES}
_half_on_cpu: set[str] = set()
_active = _all[NAMESPACES[0]]
_active_namespace = NAMESPACES[0]
_found: dict[tuple[str, str], Callable[..., Any]] = {}
_functions = False


def kernels() -> Kernels:
    """The implementation in use."""
    return _active


def operation(name: str) -> Callable[..., Any]:
    """An operation of the implementation in use, such as ``gru_forward``."""
    if _functions:
        return _reference.function(name)
    op = _found.get((_active_namespace, name))
    if op is None:
        op = getattr(getattr(torch.ops, _active_namespace), name).default
        if not torch.compiler.is_compiling():  # a tracer forbids what outlives the graph
            _found[_active_namespace, name] = op
    return op


@contextmanager
def use_functions() -> Iterator[None]:
    """Inside, `operation` gives the reference's Python functions, for torch to differentiate."""
    global _functions
    before, _functions = _functions, True
    try:
        yield
    finally:
        _functions = before


def check_device(device: torch.device) -> None:
    """RuntimeError for a CUDA tensor in a build that has no CUDA kernels."""
    if device.type == "cuda" and HAVE_COMPILED and not CUDA_ARCHITECTURES and not replaced():
        raise RuntimeError(NO_CUDA)


def takes_half(device: torch.device) -> bool:
    """Whether the kernels in use compute half-precision tensors of this device themselves."""
    if device.type == "cuda":
        return bool(CUDA_ARCHITECTURES) and not replaced()
    return bool(_half_on_cpu) and _active in [_all[name] for name in _half_on_cpu]


def replaced() -> bool:
    """Whether other operations than the first choice are in use (in tests)."""
    return _active is not _all[NAMESPACES[0]]


@contextmanager
def use(namespace: str) -> Iterator[None]:
    """Run the operations of another namespace (for tests)."""
    global _active, _active_namespace
    before = _active, _active_namespace
    _active, _active_namespace = _all[namespace], namespace
    try:
        yield
    finally:
        _active, _active_namespace = before


def use_reference() -> AbstractContextManager[None]:
    """Run the plain PyTorch reference instead of the compiled kernels (for tests)."""
    return use(_reference.NAMESPACE)


def lead_of(*tensors: Tensor | None) -> Any:
    """The common leading size, among sizes that are L or 1."""
    for x in tensors:
        if x is not None and x.dim() > 1 and x.shape[0] != 1:
            return x.shape[0]
    return 1


def _computed(like: Tensor, absent: bool) -> Tensor:
    shape = (0,) if absent else like.shape
    return like.new_empty(shape, dtype=computed(like.dtype))


def _fake_forward(pre, y0, s0, w, leak, lengths, form, act, unit_leak):  # type: ignore[no-untyped-def]
    lead = lead_of(pre, y0, s0, w, leak)
    y = pre.new_empty(lead, *pre.shape[1:])
    aux = _computed(y, unit_leak)
    return y, aux, pre.new_empty(lead, *pre.shape[2:])


def _fake_backward(gy, gaux, gs_n, y, aux, w, leak, lengths, form, act, unit_leak, policy, mu,  # type: ignore[no-untyped-def]
                   window, decay, want_lam):  # fmt: skip
    lead = lead_of(gy, gaux, gs_n, y, aux, None if policy == 1 else w, leak)
    delta = y.new_empty(lead, *y.shape[1:])
    first = y.new_empty(lead, *y.shape[2:])
    lam = _computed(delta, not want_lam)
    return delta, first, torch.empty_like(first), lam


def _fake_forward_jvp(dpre, dy0, ds0, dleak, y, aux, y0, s0, w, leak, lengths, form, act,  # type: ignore[no-untyped-def]
                      unit_leak, want_du):  # fmt: skip
    lead = lead_of(dpre, dy0, ds0, dleak, y, aux, y0, s0, w, leak)
    dy = y.new_empty(lead, *y.shape[1:])
    daux = _computed(dy, unit_leak)
    du = torch.empty_like(dy) if want_du else y.new_empty(0)
    return dy, daux, y.new_empty(lead, *y.shape[2:]), du


def _fake_backward_jvp(dgy, dgs_n, dleak, dy, daux, y, aux, lam, delta, w, leak, lengths, form,  # type: ignore[no-untyped-def]
                       act, unit_leak, want_dlam):  # fmt: skip
    lead = lead_of(dgy, dgs_n, dleak, dy, daux, y, aux, lam, delta, w, leak)
    ddelta = y.new_empty(lead, *y.shape[1:])
    first = y.new_empty(lead, *y.shape[2:])
    dlam = _computed(ddelta, not want_dlam)
    return ddelta, first, torch.empty_like(first), dlam


def _folded(x: Tensor, dim: int | None, size: int, inner: int) -> Tensor:
    """``x`` (inner or 1, ...), vmapped along ``dim``: both dimensions in the leading one."""
    if dim is None:
        if inner == 1 or x.shape[0] == 1:
            return x
        return x.unsqueeze(0).expand(size, *x.shape).reshape(size * inner, *x.shape[1:])
    x = x.movedim(dim, 0)
    if inner == 1:
        return x.squeeze(1)
    return x.expand(size, inner, *x.shape[2:]).reshape(size * inner, *x.shape[2:])


def one_by_one(
    call: Callable[..., Any], size: int, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """``call(*args)`` under ``vmap``, once per entry of the vmapped dimension."""

    def run(entry: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, ...]:
        pairs = zip(args, in_dims, strict=True)
        return call(*(entry(a, d) if isinstance(d, int) else a for a, d in pairs))

    if size == 0:  # for the shapes
        parts = run(lambda a, d: a.new_zeros(a.shape[:d] + a.shape[d + 1 :]))
        out = tuple(part.new_empty(0, *part.shape) for part in parts)
    else:
        each = [run(lambda a, d, i=i: a.select(d, i)) for i in range(size)]  # type: ignore[misc]
        out = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
    return out, (0,) * len(out)


def vmap_by_folding(
    call: Callable[..., Any],
    size: int,
    in_dims: Sequence[Any],
    args: Sequence[Any],
    lengths_at: int,
) -> tuple[Any, Any]:
    """``call(*args)`` under ``vmap``, the vmapped dimension folded into the leading one: one call.

    ``args[lengths_at]`` has no leading dimension; where it is vmapped, ``call`` runs once per
    entry.
    """
    if in_dims[lengths_at] is not None:
        return one_by_one(call, size, in_dims, args)
    where = [i for i, a in enumerate(args) if isinstance(a, Tensor) and i != lengths_at]
    # the saved value of a unit leak is an empty tensor without a leading dimension
    where = [i for i in where if args[i].dim() - (in_dims[i] is not None) > 1]
    sizes = []
    for i in where:
        x, dim = args[i], in_dims[i]
        sizes.append(x.shape[0] if dim is None else x.shape[1 if dim == 0 else 0])
    inner = 0 if 0 in sizes else max(sizes)
    folded = list(args)
    for i in where:
        folded[i] = _folded(args[i], in_dims[i], size, inner)
    out = call(*folded)
    dims = tuple(None if x.dim() == 1 else 0 for x in out)
    out = tuple(
        x if dim is None else x.reshape(size, inner, *x.shape[1:])
        for x, dim in zip(out, dims, strict=True)
    )
    return out, dims


def register_writing(namespace: str, names: Sequence[str]) -> None:
    """Tracing of operations that write into their arguments and return nothing."""
    for name in names:
        torch.library.register_fake(f"{namespace}::{name}", lambda *_: None)


def changed(*tensors: Tensor | None) -> None:
    """Autograd sees by a tensor's version that it changed; operations in C++ don't count it."""
    if torch.compiler.is_compiling():
        return
    for x in tensors:
        if x is not None and not x.is_inference():
            torch.autograd.graph.increment_version(x)


LENGTHS_AT = {
    "leaky_forward": 5,
    "leaky_backward": 7,
    "leaky_forward_jvp": 10,
    "leaky_backward_jvp": 11,
}
_FAKES: tuple[Callable[..., Any], ...] = (
    _fake_forward,
    _fake_backward,
    _fake_forward_jvp,
    _fake_backward_jvp,
)


def vmap_of(op: Callable[..., Any], lengths_at: int) -> Callable[..., Any]:
    def vmap(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        return vmap_by_folding(op, info.batch_size, in_dims, args, lengths_at)

    return vmap


def register(namespace: str, half_on_cpu: bool = False) -> None:
    """Shapes and ``vmap`` of the operations of a namespace.

    ``half_on_cpu``: they take half-precision tensors of the CPU.
    """
    if half_on_cpu:
        _half_on_cpu.add(namespace)
    found = _all.setdefault(namespace, _load(namespace))
    for name, fake, op in zip(Kernels._fields, _FAKES, found, strict=True):
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_vmap(f"{namespace}::{name}", vmap_of(op, LENGTHS_AT[name]))


for _namespace in NAMESPACES:
    register(_namespace)

from . import _functorch as _functorch  # noqa: E402  (registers the operations' derivatives)
