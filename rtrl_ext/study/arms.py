"""Which runs a study consists of."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arm_groups import GROUPS, Arm
from .config import (
    KINDS,
    OTHER_ITERATIONS,
    PAIRED,
    RunConfig,
    Settings,
    digest,
    rule_spec,
    settings,
)
from .config import versions as current_versions
from .online import check_online
from .tomlfile import ConfigError, TomlFile, arm_tables

FORMAT = 1


def parse_arms(text: str, base: Settings | None = None) -> list[Arm]:
    """Arms from a list of names and groups (``rule,bptt-rho``, ``core``), or a TOML file.

    The groups are ``core``, ``remedies``, ``phase``, ``gain`` and ``rank``; what several of them
    hold is there once. The file holds one table per arm: ``[[arm]]`` with ``name``, ``kind``
    (default: the name) and any setting that differs, such as ``lr = 0.01``, from ``base`` (default:
    the preset quick).
    """
    text, base = text.strip(), base or settings("quick")
    if text.endswith(".toml"):
        return _toml_arms(Path(text), base)
    arms: list[Arm] = []
    for name in (part.strip() for part in text.split(",")):
        if name in GROUPS:
            group = GROUPS[name](base)
            for arm in group:
                try:
                    _settings_of(arm, base)
                except ValueError as error:
                    raise ValueError(f"arms: {name}: {arm.name!r}: {error}") from error
            arms += [arm for arm in group if arm not in arms]
        elif name in KINDS:
            arms.append(Arm(name, name))
        else:
            groups = ", ".join(repr(group) for group in GROUPS)
            raise ValueError(
                f"arms: got {name!r}, expected {groups}, names among {', '.join(KINDS)}, "
                "or a .toml file"
            )
    return _unique(arms)


def _settings_of(arm: Arm, base: Settings) -> Settings:
    return settings("quick", **{**dataclasses.asdict(base), **arm.overrides})


def _toml_arms(path: Path, base: Settings) -> list[Arm]:
    try:
        file = TomlFile(path)
        file.known(file.values, ("arm",))
        return arm_tables(file, file.values.get("arm"), base)
    except ConfigError as error:
        kind = FileNotFoundError if isinstance(error.__cause__, OSError) else ValueError
        raise kind(f"arms: {error}") from error


def _unique(arms: list[Arm]) -> list[Arm]:
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"arms: {name!r} is named twice")
    return arms


@dataclass(frozen=True)
class StudyConfig:
    """A whole study: settings, rules, arms and seeds."""

    settings: Settings
    rules: tuple[str, ...]
    arms: tuple[Arm, ...] = (Arm("rule"),)
    seeds: tuple[int, ...] = (0,)
    preset: str = "quick"
    other_iterations: int | None = None

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules: got none, expected at least one")
        if not self.seeds:
            raise ValueError("seeds: got none, expected at least one")
        shown = [rule_spec(text)[0] for text in self.rules]
        for name in shown:
            if shown.count(name) > 1:
                raise ValueError(f"rules: {name!r} is named twice")
        object.__setattr__(self, "rules", tuple(shown))
        kinds = {arm.kind for arm in self.arms}
        plain = [arm for arm in self.arms if arm.kind == "rule" and not arm.overrides]
        for kind in PAIRED:
            if kind in kinds and not plain:
                raise ValueError(
                    f"arms: {kind!r} takes its rate from the arm 'rule', which is not there"
                )
        for run in self.runs():
            check_online(run)

    @staticmethod
    def make(
        rules: list[str],
        *,
        seeds: int = 1,
        preset: str = "quick",
        arms: str = "rule",
        **overrides: Any,
    ) -> "StudyConfig":
        """A study from the command line's terms; ``overrides`` are settings."""
        if seeds < 1:
            raise ValueError(f"seeds: got {seeds}, expected at least 1")
        base = settings(preset, **overrides)
        own = "iterations" in overrides or base.task.partition(":")[0] != "seqmnist"
        return StudyConfig(
            settings=base,
            rules=tuple(rules),
            arms=tuple(parse_arms(arms, base)),
            seeds=tuple(range(seeds)),
            preset=preset,
            other_iterations=None if own else OTHER_ITERATIONS.get(preset),
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``study.json`` holds."""
        body = {
            "format": FORMAT,
            "task": self.settings.task,
            "rules": list(self.rules),
            "arms": [arm.name for arm in self.arms],
            "arm_settings": {a.name: {"kind": a.kind, **a.overrides} for a in self.arms},
            "seeds": list(self.seeds),
            "preset": self.preset,
            "config": dataclasses.asdict(self.settings),
            "other_iterations": self.other_iterations,
            "versions": current_versions(),
        }
        return {**body, "hash": digest(body)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "StudyConfig":
        """The study that a ``study.json`` describes."""
        arms = []
        for name in values["arms"]:
            rest = dict(values["arm_settings"][name])
            arms.append(Arm(name, rest.pop("kind"), rest))
        return StudyConfig(
            settings=Settings(**values["config"]),
            rules=tuple(values["rules"]),
            arms=tuple(arms),
            seeds=tuple(values["seeds"]),
            preset=values["preset"],
            other_iterations=values["other_iterations"],
        )

    def runs(self) -> list[RunConfig]:
        """Every run, seed by seed, each after the run that it takes its rate from.

        BPTT itself has only arms of kind ``rule``.
        """
        plan: list[RunConfig] = []
        for seed in self.seeds:
            pairs: dict[str, str] = {}
            later: list[RunConfig] = []
            for text in self.rules:
                name, spec = rule_spec(text)
                for arm in self.arms:
                    if arm.kind != "rule" and name == "bptt":
                        continue
                    values = {**dataclasses.asdict(self.settings), **arm.overrides}
                    if (
                        self.other_iterations
                        and name != "bptt"
                        and "iterations" not in arm.overrides
                    ):
                        values["iterations"] = self.other_iterations
                    run = RunConfig(Settings(**values), name, spec, arm.name, arm.kind, seed)
                    if arm.kind == "rule" and not arm.overrides:
                        pairs.setdefault(name, run.run_id)
                    (later if arm.kind in PAIRED else plan).append(run)
            plan += [dataclasses.replace(run, paired=pairs[run.rule]) for run in later]
        return plan


def demo() -> StudyConfig:
    """The demo: BPTT, and η and ρ̄η for e-prop, MDGL and ModProp; two seeds."""
    return StudyConfig.make(
        ["bptt", "eprop", "mdgl", "modprop"], seeds=2, preset="demo", arms="rule,bptt-rho"
    )
