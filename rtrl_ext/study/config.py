"""The configuration of a run and of a study; what makes two of them the same."""

import dataclasses
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__, rules, tasks
from ..tasks.checks import choice, nearest
from .presets import OTHER_ITERATIONS as OTHER_ITERATIONS
from .presets import PRESETS, task_preset

KINDS = ("rule", "bptt-rho", "projected", "matched-noise")
OPTIMIZERS = ("sgd", "adam")
CURVATURE = ("lanczos", "power", "none")
CELLS = ("leaky", "alif")

#: largest count among the settings
MOST = 2**31 - 1

#: training losses at which runs are compared
LEVELS = (1.2, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1)


class SettingError(ValueError):
    """A setting that does not fit the data; the message begins with its name."""


@dataclass(frozen=True)
class Settings:
    """Everything about a run but its rule, arm and seed; ``ValueError`` on values out of range.

    ``task`` is a name with options, as `rtrl_ext.tasks.parse` takes it; ``shift`` the named shift
    of the test set that is followed along training (``shift_noise``: its size, of seqmnist);
    ``dale`` the share of excitatory units under Dale's law (0: without it); ``tau_v``, ``tau_a``
    (ms) and ``beta`` belong to the cell ``alif``, half of whose units adapt, ``leak`` and
    ``nonlinearity`` to ``leaky``. ``leak`` is κ in (0, 1]; ``lr`` is η; ``l2`` the factor of
    ``½‖θ‖²`` over all parameters; ``stop_loss`` the full training loss that ends a run (None:
    never); ``every`` counts are iterations.
    """

    task: str = "seqmnist"
    data: str | None = None
    train_size: int | None = 1000
    test_size: int | None = 4000
    shift: str = "noise"
    shift_noise: float = 0.2
    cell: str = "leaky"
    hidden_size: int = 128
    nonlinearity: str = "relu"
    form: str = "rate"
    leak: float = 0.5
    dale: float = 0.0
    tau_v: float = 20.0
    tau_a: float = 2000.0
    beta: float = 0.0174
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 3e-2
    momentum: float = 0.0
    l2: float = 1e-4
    iterations: int = 2500
    stop_loss: float | None = 0.3
    eval_every: int = 20
    test_every: int = 200
    alignment_every: int = 1
    curvature: str = "lanczos"
    curvature_batch: int = 256
    curvature_products: int = 15
    curvature_points: int = 40
    curvature_budget: float = 0.1
    final_products: int = 60
    trace_products: int = 30
    sharpness_num: int = 0

    def __post_init__(self) -> None:
        for name, low in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name in ("train_size", "test_size"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r}, expected an int")
            if value < low:
                raise ValueError(f"{name}: got {value}, expected at least {low}")
            if value > MOST:
                raise ValueError(f"{name}: got {value}, expected at most {MOST}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and name == "stop_loss":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}: got {value!r}, expected a number")
            if name == "leak":
                if not 0 < value <= 1:
                    raise ValueError(f"leak: got {value}, expected a number in (0, 1]")
            elif not (value >= 0 and np.isfinite(value)):
                raise ValueError(f"{name}: got {value}, expected a finite number of at least 0")
            object.__setattr__(self, name, float(value))
        self._check_task()
        if self.lr == 0:
            raise ValueError("lr: got 0, expected a rate above 0")
        if self.momentum >= 1:
            raise ValueError(f"momentum: got {self.momentum}, expected below 1")
        for name, legal in (
            ("cell", CELLS),
            ("optimizer", OPTIMIZERS),
            ("curvature", CURVATURE),
            ("form", ("rate", "voltage")),
            ("nonlinearity", ("tanh", "relu", "softplus", "identity")),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(legal)}"
                )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum: got {self.momentum} with {self.optimizer}, expected sgd")
        if self.test_every % self.eval_every:
            raise ValueError(
                f"test_every: got {self.test_every}, expected a multiple of eval_every "
                f"({self.eval_every})"
            )
        if self.cell == "alif":
            if self.curvature != "none":
                raise ValueError(
                    f"curvature: got {self.curvature!r} with spiking units, expected none: they "
                    "have no second derivatives (sharpness_num: by perturbation)"
                )
            if self.dale:
                raise ValueError(f"dale: got {self.dale} with the cell alif, expected 0")
            for name in ("tau_v", "tau_a"):
                if getattr(self, name) == 0:
                    raise ValueError(f"{name}: got 0, expected a time above 0")
        if self.dale >= 1:
            raise ValueError(f"dale: got {self.dale}, expected 0 or a share below 1")
        if self.sharpness_num == 1:
            raise ValueError("sharpness_num: got 1, expected 0 or at least 2")

    def _check_task(self) -> None:
        name, options = tasks.parse(self.task)
        for key, setting in _OWN.items():
            if key in options:
                raise ValueError(f"task: {key} in {self.task!r}, expected the setting {setting}")
        if name != "seqmnist":
            if self.data is not None:
                raise ValueError(f"data: got {self.data!r} with {name}, expected none")
            if self.shift_noise:
                raise ValueError(
                    f"shift_noise: got {self.shift_noise} with {name}, expected 0; its shifts have "
                    "names (shift)"
                )
        choice("shift", self.shift, tasks.get(name).shifts or ("none",))


_NUMBERS = (
    "shift_noise", "lr", "momentum", "l2", "leak", "curvature_budget", "stop_loss", "dale",
    "tau_v", "tau_a", "beta",
)  # fmt: skip
#: options of tasks that runs take from their settings
_OWN = {
    "num_train": "train_size", "num_test": "test_size", "shift": "shift", "data": "data",
    "dtype": "of float32, which runs use",
}  # fmt: skip
_COUNTS = {
    "train_size": 1, "test_size": 1, "hidden_size": 1, "batch_size": 1, "iterations": 1,
    "eval_every": 1, "test_every": 1, "alignment_every": 1, "curvature_batch": 1,
    "curvature_products": 1, "curvature_points": 1, "final_products": 1, "trace_products": 2,
    "sharpness_num": 0,
}  # fmt: skip


def settings(preset: str = "quick", **overrides: Any) -> Settings:
    """The settings of a preset with some of them replaced; ``ValueError`` names an unknown key."""
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    known = {field.name for field in dataclasses.fields(Settings)}
    for key in overrides:
        if key not in known:
            raise ValueError(
                f"unknown setting {key!r}; expected one of {', '.join(sorted(known))}"
                f"{nearest(key, known)}"
            )
    values = task_preset(preset, overrides.get("task", "seqmnist"))
    values.update({k: v for k, v in overrides.items() if k != "task"})
    if values.get("data") is not None:
        values["data"] = str(Path(values["data"]).expanduser().resolve())
    return Settings(**values)


@dataclass(frozen=True)
class RunConfig:
    """One run: settings, rule, arm and seed.

    ``rule`` is the rule's name as it is shown, ``rule_spec`` what `rules.parse` makes it from;
    ``kind`` is what the arm does with it: ``rule`` trains by it, ``bptt-rho`` trains by BPTT at the
    rate ``ρ̄ η`` with the mean ρ of the run ``paired``, ``projected`` keeps only the part along the
    gradient, ``matched-noise`` replaces the rest by random error of the same norm.
    """

    settings: Settings
    rule: str
    rule_spec: str
    arm: str
    kind: str
    seed: int
    paired: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The full configuration, flat, with the versions that it holds for."""
        flat = dataclasses.asdict(self.settings)
        for field in ("rule", "rule_spec", "arm", "kind", "seed", "paired"):
            flat[field] = getattr(self, field)
        return flat

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that stand for the full configuration and the versions."""
        return digest({"config": self.to_dict(), "versions": versions()})

    @property
    def run_id(self) -> str:
        """The run's name and folder: rule, arm, seed and hash."""
        name = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{self.rule}-{self.arm}")
        return f"{name}-s{self.seed}-{self.hash[:8]}"

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunConfig":
        """The inverse of `to_dict`; keys that are no part of a configuration are left out."""
        own = {f.name for f in dataclasses.fields(Settings)}
        rest = ("rule", "rule_spec", "arm", "kind", "seed", "paired")
        return RunConfig(
            settings=Settings(**{k: v for k, v in values.items() if k in own}),
            **{k: values[k] for k in rest},
        )


def rule_spec(text: str) -> tuple[str, str]:
    """``(name as shown, spelling for rules.parse)`` of a rule given on the command line.

    ``mdgl`` and ``modprop`` mean ``cell_specific=true`` here unless their cell types are given;
    aliases become the rule's name.
    """
    name, _, parameters = text.strip().partition(":")
    spec = text.strip()
    if name.lower() in ("mdgl", "modprop") and "cell_" not in parameters:
        spec += ":cell_specific=true"
    rule = rules.parse(spec)
    if "sequence" not in rule.modes:
        there = [row["name"] for row in rules.table() if "sequence" in row["modes"]]
        raise ValueError(
            f"rule {rule.name!r} learns in streaming mode only (module.step); expected one with a "
            f"sequence mode: {', '.join(there)}"
        )
    canonical = rule.name
    return canonical + text.strip()[len(name) :], canonical + spec[len(name) :]


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    return {"rtrl_ext": __version__, "torch": torch.__version__, "numpy": np.__version__}


def package_versions() -> dict[str, str]:
    """Versions for the record: those of `versions` and of the other packages that are in use."""
    found = versions()
    for name in ("scipy", "mlxtend"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digest(value: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
