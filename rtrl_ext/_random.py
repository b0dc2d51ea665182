"""Counter-based random numbers: Philox-4x32-10 in integer tensor arithmetic, and normal deviates
and signs from it.

A number depends on (seed, stream, step, row, unit) alone, not on what was drawn before, so that a
sequence's noise can be made at once, step by step, or again, on any device. Salmon et al. 2011
(Random123).
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four counter words and two key words to four random words.

    All are int64 tensors that hold 32-bit unsigned values and broadcast together.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # products wrap modulo 2^64, which keeps their bits
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def normal(
    seed: Tensor, steps: int, batch: int, units: int, *, stream: int = 0,
    first_step: int | Tensor = 0,
) -> Tensor:  # fmt: skip
    """Standard normal deviates (steps, batch, units), float64, on the seed's device.

    seed: int64 scalar tensor, at least 0. stream: separates draws that share a seed, such as
        layers.
    first_step: number of the first step, so that single steps reproduce parts of a sequence; an
        int64 tensor (1,) where the device counts.
    """
    device = seed.device
    blocks = (units + 3) // 4
    step = (torch.arange(steps, device=device) + first_step)[:, None, None]
    row = torch.arange(batch, device=device)[None, :, None]
    block = torch.arange(blocks, device=device)[None, None, :]
    other = torch.full((1, 1, 1), stream, dtype=torch.int64, device=device)
    words = philox((block, row, step & _MASK, other), (seed & _MASK, (seed >> 32) & _MASK))
    uniform = [(w.to(torch.float64) + 0.5) * 2.0**-32 for w in words]
    pairs = []
    for a, b in (uniform[:2], uniform[2:]):
        radius, angle = torch.sqrt(-2 * torch.log(a)), 2 * math.pi * b
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, -1).flatten(2)[:, :, :units]


def signs(seed: int, first_step: Tensor, steps: int, count: int, *, stream: int = 0) -> Tensor:
    """Random signs (steps, batch, count), int64 numbers 1 and -1, on the device of ``first_step``.

    first_step: (batch,) int64, each row's own number of the first step. seed: at least 0. stream
        (below 2^31): separates draws that share a seed, such as layers; signs never share their
        bits with `normal`. One draw of Philox makes 128 signs.
    """
    device = first_step.device
    step = (first_step + torch.arange(steps, device=device)[:, None])[..., None]
    row = torch.arange(len(first_step), device=device)[None, :, None]
    block = torch.arange((count + 127) // 128, device=device)[None, None, :]
    other = torch.full((1, 1, 1), stream | 1 << 31, dtype=torch.int64, device=device)
    key = [torch.tensor(k & _MASK, device=device) for k in (seed, seed >> 32)]
    words = philox((block, row, step & _MASK, other), (key[0], key[1]))
    bits = torch.stack(words, -1)[..., None] >> torch.arange(32, device=device) & 1
    return (2 * bits - 1).flatten(2)[:, :, :count]


def draw_seed(device: torch.device) -> Tensor:
    """An int64 scalar tensor on ``device`` from torch's CPU generator.

    Inside ``torch.func`` transforms it is one and the same seed for everything that is batched.
    """
    if torch.compiler.is_compiling():
        return torch.randint(2**62, (), dtype=torch.int64).to(device)
    with torch._C._DisableFuncTorch():
        return torch.randint(2**62, (), dtype=torch.int64).to(device)
