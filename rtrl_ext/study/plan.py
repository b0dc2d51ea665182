"""A study from what was asked for: a configuration file, options, and a preset's defaults."""

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..tasks.checks import nearest
from .arm_groups import Arm
from .arms import StudyConfig, parse_arms
from .config import OTHER_ITERATIONS, PRESETS, rule_spec, settings
from .optional import need
from .tomlfile import SETTINGS, ConfigError, TomlFile, arm_tables, none_word

#: names of the ready configurations, which are installed with the package
READY = ("quick", "full", "paper", "remedies", "phase")
FULL_RULES = ("bptt", "eprop", "snap1", "mdgl", "modprop")
DEMO_RULES = ("bptt", "eprop", "mdgl", "modprop")
_KEYS = (
    "task", "preset", "rules", "seeds", "arms", "arm", "other_iterations", "settings",
)  # fmt: skip


def defaults(preset: str, task: str) -> dict[str, Any]:
    """Rules, arms and number of seeds of a preset for a task; quick and paper name no rules."""
    if preset == "full":
        seeds = 30 if task.partition(":")[0] == "seqmnist" else 20
        return {"rules": FULL_RULES, "arms": "rule,bptt-rho", "seeds": seeds}
    if preset == "demo":
        return {"rules": DEMO_RULES, "arms": "rule,bptt-rho", "seeds": 2}
    return {"rules": (), "arms": "rule", "seeds": 1}


@dataclass
class Plan:
    """What was asked for, from a file or as options; None and absent keys are the preset's.

    ``arms`` is a text as `parse_arms` takes it; ``other_iterations`` is 0 for none.
    """

    task: str | None = None
    preset: str | None = None
    rules: list[str] | None = None
    seeds: list[int] | None = None
    arms: str | None = None
    arm_tables: list[dict[str, Any]] | None = None
    other_iterations: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    file: TomlFile | None = None

    def over(self, below: "Plan") -> "Plan":
        """This plan, with what it leaves open taken from another."""
        both = dataclasses.replace(below)
        for name in ("task", "preset", "rules", "seeds"):
            if getattr(self, name) is not None:
                setattr(both, name, getattr(self, name))
        if self.arms is not None:
            both.arms, both.arm_tables = self.arms, None
        if "iterations" in self.settings:
            both.other_iterations = None
        both.settings = {**below.settings, **self.settings}
        return both

    def study(self) -> StudyConfig:
        """The whole study; ``ValueError`` or ``TypeError`` begins with the name of what is wrong.

        `ConfigError` where an arm of the file is wrong.
        """
        preset = self.preset or "quick"
        base = settings(preset, **{"task": self.task or "seqmnist", **self.settings})
        own = defaults(preset, base.task)
        rules = list(own["rules"]) if self.rules is None else self.rules
        if not rules:
            raise ValueError("rules: got none, expected some, such as bptt,eprop,mdgl,modprop")
        for text in rules:
            try:
                rule_spec(text)
            except (ValueError, TypeError) as error:
                raise ValueError(f"rules: {error}") from error
        arms: list[Arm]
        if self.arm_tables is not None and self.file is not None:
            arms = arm_tables(self.file, self.arm_tables, base)
        else:
            arms = parse_arms(self.arms or own["arms"], base)
        other = self.other_iterations
        if other is None and "iterations" not in self.settings:
            other = OTHER_ITERATIONS.get(preset) if base.task.startswith("seqmnist") else None
        return StudyConfig(
            settings=base,
            rules=tuple(rules),
            arms=tuple(arms),
            seeds=tuple(range(own["seeds"]) if self.seeds is None else self.seeds),
            preset=preset,
            other_iterations=other or None,
        )


def read_plan(name: str) -> Plan:
    """The plan in a TOML file, or in a ready one by its name (``quick``, ``paper``, ...).

    Raises:
        ConfigError: no such file; not TOML; unknown keys (the nearest is named) or wrong types.
    """
    file = TomlFile(_path(name))
    values = file.values
    file.known(values, _KEYS)
    for key, kind, word in (
        ("task", str, "a string"), ("preset", str, "a string"), ("settings", dict, "a table"),
    ):  # fmt: skip
        if key in values and not isinstance(values[key], kind):
            raise file.error(f"{key}: got {values[key]!r}, expected {word}", key)
    preset = values.get("preset")
    if preset is not None and preset not in PRESETS:
        hint = nearest(preset, PRESETS) or f", expected one of {', '.join(PRESETS)}"
        raise file.error(f"preset: got {preset!r}{hint}", "preset")
    given = values.get("settings", {})
    if "task" in given:
        raise file.error("task stands above [settings]", "task", "settings")
    file.known(given, [k for k in SETTINGS if k != "task"], "settings")
    if "arms" in values and "arm" in values:
        raise file.error("arms and [[arm]] are both there, expected one of them", "arms")
    other = values.get("other_iterations")
    if other is not None and other != "none" and (type(other) is not int or other < 1):
        text = f'other_iterations: got {other!r}, expected an integer above 0 or "none"'
        raise file.error(text, "other_iterations")
    return Plan(
        task=values.get("task"),
        preset=preset,
        rules=_words(file, "rules"),
        seeds=_seeds(file),
        arms=None if "arms" not in values else ",".join(_words(file, "arms") or ()),
        arm_tables=values.get("arm"),
        other_iterations=0 if other == "none" else other,
        settings={k: file.setting(k, v) for k, v in given.items()},
        file=file,
    )


def _path(name: str) -> Path:
    if name in READY:
        return Path(str(resources.files(__package__) / "configs" / f"{name}.toml"))
    if not name.endswith(".toml") and not Path(name).exists():
        hint = nearest(name, READY) or ""
        raise ConfigError(f"got {name!r}, expected a .toml file or {', '.join(READY)}{hint}")
    return Path(name)


def _words(file: TomlFile, key: str) -> list[str] | None:
    """A list of names, or a text that holds them between commas."""
    value = file.values.get(key)
    if value is None:
        return None
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise file.error(f"{key}: got {value!r}, expected a string or a list of strings", key)
    found = [word.strip() for word in words if word.strip()]
    if not found:
        raise file.error(f"{key}: got {value!r}, expected at least one name", key)
    return found


def _seeds(file: TomlFile) -> list[int] | None:
    """``20``: seeds 0 to 19; ``[3, 5]``: those."""
    value = file.values.get("seeds")
    if value is None:
        return None
    if type(value) is int and 1 <= value <= MOST_SEEDS:
        return list(range(value))
    whole = isinstance(value, list) and all(type(v) is int and 0 <= v < 2**32 for v in value)
    if not whole or not value or len(set(value)) < len(value):
        text = f"seeds: got {value!r}, expected their number, or a list of them, each once"
        raise file.error(text, "seeds")
    return list(value)


MOST_SEEDS = 100_000


def dump(study: StudyConfig) -> str:
    """The complete configuration of a study as TOML; `read_plan` makes the same study of it.

    Raises:
        ImportError: the package tomli_w is missing.
    """
    tomli_w = need("tomli_w", "writing a configuration")
    counted = study.seeds == tuple(range(len(study.seeds)))
    values: dict[str, Any] = {
        "task": study.settings.task,
        "preset": study.preset,
        "rules": list(study.rules),
        "seeds": len(study.seeds) if counted else list(study.seeds),
        "other_iterations": study.other_iterations or "none",
        "settings": _spelled(dataclasses.asdict(study.settings), without=("task",)),
    }
    text = str(tomli_w.dumps(values))
    for arm in study.arms:  # tables of their own, which people can read
        table = {"name": arm.name, "kind": arm.kind, **_spelled(arm.overrides)}
        text += f"\n[[arm]]\n{tomli_w.dumps(table)}"
    return text


def _spelled(values: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Settings with the word that stands for None in its place."""
    return {k: none_word(k) if v is None else v for k, v in values.items() if k not in without}
