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

from .. import __version__, rules
from ..tasks.checks import nearest
from ._settings import SettingError as SettingError
from ._settings import Settings
from .presets import OTHER_ITERATIONS as OTHER_ITERATIONS
from .presets import PRESETS, task_preset

KINDS = (
    "rule", "bptt-rho", "projected", "matched-noise", "rescaled", "gradient-noise", "online",
)  # fmt: skip
#: kinds that take their rate from the mean ρ of a run of kind ``rule``
PAIRED = ("bptt-rho", "rescaled")

#: training losses at which runs are compared
LEVELS = (1.2, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1)


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
    gradient, ``matched-noise`` replaces the rest by random error of the same norm. ``rescaled``
    trains by the rule at the rate ``η/ρ̄``, ``gradient-noise`` by BPTT with Gaussian noise of the
    norm of the rule's error, ``online`` by the rule in streaming mode with an update at every step.
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
