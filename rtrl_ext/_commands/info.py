"""``rtrl-ext info``: what is installed and what it runs on."""

import argparse
import os
import platform

import torch

from .. import __version__


def build_info() -> dict[str, str]:
    """How the compiled kernels were built; ``ImportError`` if they can't be loaded."""
    from .. import _C  # type: ignore[attr-defined]

    return {str(k): str(v) for k, v in _C.build_info().items()}


def info(arguments: argparse.Namespace) -> int:
    """Print versions, build, instruction set, threads and devices."""
    lines = {
        "rtrl_ext": __version__,
        "torch": torch.__version__,
        "python": f"{platform.python_version()} ({platform.platform()})",
    }
    names = {
        "isa_compiled": "instruction sets compiled",
        "isa": "instruction set in use",
        "cuda_architectures": "CUDA architectures compiled",
        "compiler": "compiler",
        "torch_target": "stable ABI of torch",
        "version": "kernels",
    }
    try:
        for key, value in build_info().items():
            text = value or ("none (CPU-only build)" if "cuda" in key else "none")
            lines[names.get(key, key)] = text
    except ImportError as error:
        lines["kernels"] = f"not loaded: {error}"
    lines["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
    lines["devices"] = ", ".join(devices)
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")
    return 0
