"""Bytes: what PyTorch's allocator holds during a call, and a process's peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def allocator_peak(call: Callable[[], Any]) -> int:
    """Peak bytes that torch's CPU allocator holds during `call`, above those held before.

    Counts every tensor, those made inside compiled operations too; scratch space that C++ code
    takes by itself (packed weights) is not seen.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = call()
        del result
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        if event.device_type() == torch.autograd.DeviceType.CPU:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _status(field: str) -> int:
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def resident() -> int:
    """Resident bytes of this process now (Linux)."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Most resident bytes of this process so far (Linux)."""
    return _status("VmHWM")
