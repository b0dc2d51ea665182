"""What a figure depends on: processor, versions, threads, load, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any

import torch

PACKAGES = (
    "torch",
    "numpy",
    "PyHessian",
    "curvlinops-for-pytorch",
    "snntorch",
    "norse",
    "rtrl_ext",
)


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load_average() -> float:
    """Load of the last minute; a machine busy with other work shows up here."""
    return round(os.getloadavg()[0], 2)


def describe() -> dict[str, Any]:
    """A dictionary for the head of every result file."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": versions,
        "load_start": load_average(),
    }
