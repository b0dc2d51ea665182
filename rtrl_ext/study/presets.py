"""The settings of the presets, task by task."""

import math
from typing import Any

from .. import tasks

_POWER = {"stop_loss": None, "alignment_every": 10, "curvature": "power", "final_products": 500}

#: what differs from the defaults of `Settings`, for seqmnist
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "full": {},
    "demo": {"iterations": 1200, "alignment_every": 10},
    "paper": {
        **_POWER, "leak": 1.0, "batch_size": 256, "lr": 1e-2, "l2": 1e-2, "train_size": 4000,
        "test_size": 1000, "iterations": 10000,
    },
}  # fmt: skip

#: iterations of the rules other than BPTT where they differ from BPTT's, for seqmnist
OTHER_ITERATIONS: dict[str, int] = {"paper": 16000}

# Generated tasks end below the lowest level at which runs are compared (``stop_loss``), so that
# nothing of the comparison is lost.
_GENERATED = {"shift_noise": 0.0, "stop_loss": 0.05, "l2": 0.0, "train_size": 128}
_SHARED: dict[str, dict[str, Any]] = {
    "delayed-match": {
        **_GENERATED, "test_size": 1024, "hidden_size": 100, "leak": 0.2, "batch_size": 32,
        "lr": 3e-3, "momentum": 0.9, "iterations": 2000,
    },
    "pattern": {
        **_GENERATED, "train_size": 16, "test_size": 64, "hidden_size": 100, "nonlinearity": "tanh",
        "leak": 0.2, "batch_size": 16, "optimizer": "adam", "lr": 1e-3, "iterations": 1500,
    },
    "delayed-xor": {
        **_GENERATED, "test_size": 512, "hidden_size": 120, "dale": 0.8,
        "leak": 1 - math.exp(-0.01), "batch_size": 32, "optimizer": "adam", "lr": 5e-4, "l2": 5e-4,
        "iterations": 3000,
    },
    "evidence": {
        **_GENERATED, "test_size": 256, "cell": "alif", "hidden_size": 100, "batch_size": 64,
        "optimizer": "adam", "lr": 2.5e-3, "iterations": 2000, "curvature": "none",
        "sharpness_num": 20, "alignment_every": 10,
    },
    "neurogym": {
        **_GENERATED, "shift": "none", "test_size": 512, "hidden_size": 100, "leak": 0.2,
        "batch_size": 32, "optimizer": "adam", "lr": 1e-3, "iterations": 2000,
    },
}  # fmt: skip
#: what differs again in a preset; "task" holds options of the task
_OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("delayed-match", "demo"): {"iterations": 1000},
    ("delayed-match", "paper"): {
        "task": {"dt": 100}, "leak": 1.0, "hidden_size": 300, "iterations": 10000,
    },
    ("pattern", "demo"): {"iterations": 600},
    ("delayed-xor", "demo"): {
        "task": {"dt": 10}, "leak": 1 - math.exp(-0.1), "lr": 2e-3, "iterations": 400,
    },
    ("evidence", "demo"): {"task": {"dt": 5}, "iterations": 200},
    ("neurogym", "demo"): {"iterations": 600},
}  # fmt: skip


def task_preset(preset: str, text: str) -> dict[str, Any]:
    """The settings of a preset for the task ``text``, which may have options of its own.

    ``task`` among them is ``text`` with the preset's options for those that it doesn't give.
    """
    name, given = tasks.parse(text)
    if name == "seqmnist":
        return {**PRESETS[preset], "task": text}
    values = dict(_SHARED[name])
    if preset == "paper":
        values.update(_POWER)
        if values.get("cell") == "alif":
            values["curvature"] = "none"
    elif preset == "demo":
        values["alignment_every"] = 10
    values.update(_OWN.get((name, preset), {}))
    more = values.get("task", {})
    values["task"] = ":".join([text, *(f"{k}={v}" for k, v in more.items() if k not in given)])
    return values
