"""What the arms of a study are for, and their names in words.

An arm is described by its ``kind`` and by the settings in which it differs from the study, as in
``arm_settings`` of ``study.json``.
"""

from collections.abc import Mapping
from typing import Any

RULE, CORE, RATE, REMEDY, OTHER = "rule", "core", "rate", "remedy", "other"
CORE_KINDS = ("bptt-rho", "projected", "matched-noise")
REMEDY_KINDS = ("rescaled", "gradient-noise", "online")
#: settings that make a remedy of an arm of kind ``rule``, with the values that switch them off
REMEDY_SETTINGS: dict[str, tuple[Any, ...]] = {
    "lr_factor": (1, None), "sam_rho": (0, None), "label_noise": (0, None), "clip_norm": (None,),
}  # fmt: skip
#: settings that an arm of another step size may have besides
_WITH_RATE = {"kind", "lr", "iterations", "stop_loss"}

ArmSettings = Mapping[str, Mapping[str, Any]]


def settings_of(arms: ArmSettings, arm: str) -> Mapping[str, Any]:
    """Kind and settings of an arm; without an entry the name is the kind."""
    return arms.get(arm) or {"kind": arm}


def role(entry: Mapping[str, Any]) -> str:
    """``rule`` (the rule as it is), ``core``, ``rate`` (it at another η), ``remedy`` or ``other``
    (other sizes, gains, ranks, ...).
    """
    kind = str(entry.get("kind", RULE))
    if kind in REMEDY_KINDS or remedies(entry):
        return REMEDY
    if kind in CORE_KINDS:
        return CORE
    rest = {k for k in entry if k not in ("kind", "lr_fraction", *REMEDY_SETTINGS)}
    if kind != RULE:
        return OTHER
    if not rest:
        return RULE
    return RATE if "lr" in rest and rest <= _WITH_RATE else OTHER


def remedies(entry: Mapping[str, Any]) -> list[str]:
    """The remedy settings that are switched on."""
    return [k for k, off in REMEDY_SETTINGS.items() if k in entry and entry[k] not in off]


def modulates(entry: Mapping[str, Any]) -> bool:
    """Whether the step size differs early in training, as the claim C5 says."""
    return "lr_factor" in remedies(entry)


def words(entry: Mapping[str, Any], rule: str, arm: str) -> str:
    """An arm of a rule (its printed name) in words; ``arm`` is its name, for what is unknown."""
    kind = str(entry.get("kind", RULE))
    known = {
        RULE: rule,
        "bptt-rho": f"BPTT at ρ̄η of {rule}",
        "projected": f"{rule}, part along the gradient",
        "matched-noise": f"{rule}, ρg + random error",
        "rescaled": f"{rule} at η/ρ̄",
        "gradient-noise": f"BPTT + noise as large as {rule}'s error",
        "online": f"{rule}, online",
    }
    if kind not in known:
        return f"{rule}, {arm}"
    parts = [known[kind]]
    said = remedies(entry)
    if "lr" in entry and role(entry) == RATE:
        parts.append(f"η = {_short(entry['lr'])}")
    if "lr_factor" in said:
        share = entry.get("lr_fraction")
        parts.append(
            f"{_short(entry['lr_factor'])}η" + (f" for {_percent(share)}" if share else "")
        )
    if "sam_rho" in said:
        parts.append(f"SAM {_short(entry['sam_rho'])}")
    if "label_noise" in said:
        parts.append(f"label noise {_short(entry['label_noise'])}")
    if "clip_norm" in said:
        parts.append(f"clipped at {_short(entry['clip_norm'])}")
    if role(entry) == OTHER:
        parts.append(arm)
    return ", ".join(parts)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _percent(value: Any) -> str:
    return f"{100 * value:g} %" if isinstance(value, (int, float)) else str(value)
