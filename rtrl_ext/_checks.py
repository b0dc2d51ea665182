"""Checks of arguments, with messages that name the argument, what came and what was expected."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

FORMS = ("rate", "voltage")
NONLINEARITIES = ("tanh", "relu", "identity", "softplus")


def has_values(value: Tensor) -> bool:
    """Whether a tensor's data can be looked at: not if it is meta, fake or under ``vmap``."""
    return not (value.is_meta or is_fake(value) or is_batched(value))


def is_batched(x: Tensor) -> bool:
    """Whether a ``vmap`` that is now active runs over ``x`` itself (private names)."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def scalar_loss(value: Any) -> Tensor:
    """What a ``loss_fn`` returned as a tensor without dimensions; TypeError and ValueError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"loss_fn: returned {type(value).__name__}, expected a scalar tensor")
    if value.numel() != 1:
        raise ValueError(
            f"loss_fn: returned shape {tuple(value.shape)}, expected a scalar (mean over terms)"
        )
    if not value.is_floating_point():
        raise TypeError(f"loss_fn: returned {value.dtype}, expected a floating scalar")
    return value.reshape(())


def check_tensor(name: str, value: Any) -> Tensor:
    """``value`` if it is a dense tensor, else TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor")
    if value.is_nested or value.layout != torch.strided:
        came = "nested" if value.is_nested else f"{value.layout}"
        raise TypeError(f"{name} is a {came} tensor; expected a dense one")
    return value


def _same(came: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(came) == len(expected) and all(a == b for a, b in zip(came, expected, strict=True))


def check_shape(name: str, value: Any, *shapes: tuple[int, ...]) -> Tensor:
    """A tensor of one of these shapes: TypeError or ValueError."""
    value = check_tensor(name, value)
    # size by size: a tracer of symbolic sizes can't look for a tuple among tuples
    if not any(_same(tuple(value.shape), shape) for shape in shapes):
        expected = " or ".join(str(s) for s in shapes)
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}")
    return value


def check_like(name: str, value: Tensor, dtype: torch.dtype, device: torch.device, of: str) -> None:
    """Refuse another dtype (TypeError) or device (ValueError) than that of ``of``."""
    if value.dtype != dtype:
        raise TypeError(f"{name} has dtype {value.dtype}; expected {dtype}, as {of}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; expected {device}, as {of}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """A string among ``choices``: TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}; expected one of {', '.join(choices)}")
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    return value


def check_size(name: str, value: Any, least: int = 1) -> int:
    """An int of at least ``least``: TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}; expected an int")
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """A bool, else TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a bool")
    return value


def check_leak(leak: Any, n: int) -> Tensor:
    """κ as a float64 CPU tensor (n,) with values in (0, 1]: TypeError or ValueError.

    ``leak`` is a number, a scalar tensor or a tensor (n,); values of a fake one are not checked.
    """
    if isinstance(leak, bool) or not isinstance(leak, (int, float, Tensor)):
        raise TypeError(f"leak is a {type(leak).__name__}; expected a number or a tensor ({n},)")
    if isinstance(leak, Tensor):
        if leak.is_complex() or leak.dtype == torch.bool:
            raise TypeError(f"leak has dtype {leak.dtype}; expected a floating one")
        if tuple(leak.shape) not in ((), (n,)):
            raise ValueError(f"leak has shape {tuple(leak.shape)}; expected a scalar or ({n},)")
    values = torch.as_tensor(leak, dtype=torch.float64, device="cpu").detach()
    came = None
    if not isinstance(leak, Tensor):
        came = None if 0 < leak <= 1 else float(leak)
    else:
        bad = ~((values > 0) & (values <= 1))
        some = bad.any()
        if has_values(some) and bool(some):
            came = float(values[bad][0]) if values.dim() else float(values)
    if came is not None:
        raise ValueError(f"leak holds {came}; expected values in (0, 1] (κ = dt/τ)")
    return values.expand(n).clone()


def check_positive(name: str, value: Any) -> float:
    """A finite number above 0: TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a number")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; expected a finite number above 0")
    return float(value)


def check_per_unit(name: str, value: Any, n: int, low: float, expected: str) -> Tensor:
    """Finite values above ``low`` as float64 (n,) on the CPU.

    ``value`` is a number or a tensor () or (n,); TypeError or ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a number or a tensor ({n},)")
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} has dtype {value.dtype}; expected a floating one")
        if tuple(value.shape) not in ((), (n,)):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected a scalar or ({n},)")
    values = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().expand(n).clone()
    came = None
    if not isinstance(value, Tensor):  # a tracer can't look at the tensor
        came = None if low < value < math.inf else float(value)
    else:
        bad = ~((values > low) & values.isfinite())
        some = bad.any()
        if has_values(some) and bool(some):
            came = float(values[bad][0])
    if came is not None:
        raise ValueError(f"{name} holds {came}; expected {expected}")
    return values


def check_mask(mask: Any, n: int) -> Tensor | None:
    """A bool tensor (n, n), True = connected, or None: TypeError or ValueError."""
    if mask is None:
        return None
    check_shape("mask", mask, (n, n))
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; expected torch.bool (True = connected)")
    return mask


def check_lengths(lengths: Any, steps: int, batch: int, device: torch.device) -> Tensor | None:
    """Lengths (B,) as int64 on ``device``, None if all are ``steps``: TypeError or ValueError."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths)
        except (TypeError, ValueError, RuntimeError) as error:
            came = f"lengths is a {type(lengths).__name__}"
            raise TypeError(f"{came}; expected an integer tensor ({batch},)") from error
    whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    if lengths.numel() and not whole:
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected integers")
    check_shape("lengths", lengths, (batch,))
    source, lengths = lengths, lengths.to(device=device, dtype=torch.int64)
    if batch == 0:
        return lengths
    if torch.compiler.is_compiling():
        if not source.is_cuda:  # there a failed assertion ends the process's use of the GPU
            inside = ((lengths >= 1) & (lengths <= steps)).all()
            torch._assert_async(inside, f"lengths: expected values from 1 to {steps}")
        return lengths
    if source.is_cuda and torch.cuda.is_current_stream_capturing():
        return lengths  # nothing can be read back; the kernels bear any value
    # read where they came from, at once
    ends = torch.stack(torch.aminmax(source.to(torch.int64)))
    if not has_values(ends):
        return lengths
    low, high = ends.tolist()
    if low < 1 or high > steps:
        wrong = low if low < 1 else high
        raise ValueError(f"lengths holds {wrong}; expected values from 1 to {steps}")
    return None if low == steps else lengths


def tuple_of_states(h0: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The initial states as a tuple; TypeError or ValueError for another number of them."""
    if names == ("h0",):
        return (h0,)
    wanted = f"a tuple ({', '.join(names)}{',' if len(names) == 1 else ''})"
    if not isinstance(h0, (tuple, list)):
        raise TypeError(f"h0 is a {type(h0).__name__}; expected {wanted}")
    if len(h0) != len(names):
        raise ValueError(f"h0 has {len(h0)} tensors; expected {wanted}")
    return tuple(h0)
