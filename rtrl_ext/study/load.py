"""A study's folder read back for its report: records that can be used, and why others cannot."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import COLUMNS, LOG, RECORD, RUNS, STUDY, read_json, record_fault

REFERENCE = "bptt"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One recorded run. ``log`` maps each column of ``log.csv`` to a float64 array (NaN: not
    measured).
    """

    run_id: str
    arm: str
    rule: str
    seed: int
    status: str
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    log: dict[str, Array] = field(default_factory=dict)
    hash: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """Arm and rule."""
        return self.arm, self.rule

    @property
    def lr(self) -> float:
        """The rate that the run trained at, NaN if its record does not say."""
        return number(self.config.get("lr"))


@dataclass(frozen=True)
class Skipped:
    """A file that the report leaves out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Missing:
    """A run that the study asks for and that has no record yet."""

    arm: str
    rule: str
    seed: int


@dataclass
class RecordedStudy:
    """What a study's folder holds."""

    folder: Path
    settings: dict[str, Any]
    runs: list[Run]
    skipped: list[Skipped]
    missing: list[Missing]

    @property
    def rules(self) -> list[str]:
        """The study's rules, BPTT first."""
        return sorted(map(str, self.settings["rules"]), key=lambda rule: rule != REFERENCE)

    @property
    def arms(self) -> list[str]:
        """The study's arms, in its own order."""
        return [str(arm) for arm in self.settings["arms"]]

    @property
    def main_arm(self) -> str:
        """The arm in which each rule trains as it is: ``rule``, or else the first of that kind."""
        if "rule" in self.arms:
            return "rule"
        return next((a for a in self.arms if self.kind(a) == "rule"), self.arms[0])

    @property
    def groups(self) -> list[tuple[str, str]]:
        """Pairs (arm, rule) in the order of the tables."""
        return [
            (arm, rule)
            for arm in sorted(self.arms, key=lambda a: a != self.main_arm)
            for rule in self.rules
            if rule != REFERENCE or self.kind(arm) == "rule"
        ]

    @property
    def preset(self) -> str:
        """``quick``, ``paper``, ``demo`` or what the study says."""
        return str(self.settings.get("preset", ""))

    def kind(self, arm: str) -> str:
        """What an arm does with its rule (``rule``, ``bptt-rho``, ``projected``,
        ``matched-noise``).
        """
        known = self.settings.get("arm_settings")
        entry = known.get(arm) if isinstance(known, dict) else None
        return str(entry.get("kind", arm)) if isinstance(entry, dict) else arm

    def of(self, arm: str, rule: str) -> list[Run]:
        """The recorded runs of an arm and rule, by seed."""
        return sorted((r for r in self.runs if r.group == (arm, rule)), key=lambda r: r.seed)


def read_study(folder: str | Path) -> RecordedStudy:
    """Read ``study.json`` and every ``runs/*/record.json``; nothing in the folder is changed.

    Records that are corrupt or belong to no run of this study are skipped and named in
    ``.skipped``.

    Raises:
        ValueError: the folder holds no study, or its ``study.json`` cannot be used.
    """
    place = Path(folder)
    path = place / STUDY
    if not path.is_file():
        raise ValueError(f"{place}: holds no study ({STUDY} is missing)")
    settings = read_json(path)
    for name, kind in (("rules", str), ("arms", str), ("seeds", int)):
        given = settings.get(name)
        if not isinstance(given, list) or not given or not all(isinstance(v, kind) for v in given):
            raise ValueError(f"{path}: {name}: got {given!r}, expected a list of {kind.__name__}")
    study = RecordedStudy(place, settings, [], [], [])
    wanted = [(arm, rule, seed) for arm, rule in study.groups for seed in settings["seeds"]]
    runs = place / RUNS
    found: dict[tuple[str, str, int], Run] = {}
    for record in sorted(runs.glob(f"*/{RECORD}")) if runs.is_dir() else []:
        shown = str(record.relative_to(place))
        try:
            run = _read_run(record)
        except (ValueError, OSError) as error:
            study.skipped.append(Skipped(shown, str(error).removeprefix(f"{record}: ")))
            continue
        key = (run.arm, run.rule, run.seed)
        if key not in wanted:
            reason = f"arm {run.arm!r}, rule {run.rule!r}, seed {run.seed} is no run of this study"
            study.skipped.append(Skipped(shown, reason))
        elif key in found:
            study.skipped.append(Skipped(shown, f"second record of the run {found[key].run_id}"))
        else:
            log, reason = _read_log(record.parent / LOG)
            if reason and run.status != "failed":
                study.skipped.append(Skipped(str((record.parent / LOG).relative_to(place)), reason))
            run.log.update(log)
            found[key] = run
    study.runs = [found[key] for key in wanted if key in found]
    study.missing = [Missing(*key) for key in wanted if key not in found]
    return study


def number(value: Any) -> float:
    """A JSON value as a float; NaN for null and whatever is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value)


def _read_run(path: Path) -> Run:
    values = read_json(path)
    reason = record_fault(values)
    if reason:
        raise ValueError(reason)
    if values["run_id"] != path.parent.name:
        raise ValueError(f"record of another run, {values['run_id']!r}")
    return Run(
        **{key: values[key] for key in ("run_id", "arm", "rule", "seed", "status", "config")},
        versions={str(k): str(v) for k, v in values["versions"].items()},
        final={str(k): number(v) for k, v in values["final"].items()},
        seconds=number(values.get("seconds")),
        hash=str(values.get("hash", "")),
    )


def _read_log(path: Path) -> tuple[dict[str, Array], str]:
    """The columns of a log, and why it cannot be used if it cannot."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if not {"iteration", "train_loss"} <= set(reader.fieldnames or ()):
                return {}, "corrupt log: no columns iteration and train_loss"
            rows = list(reader)
            columns = {name: _cells(rows, name) for name in COLUMNS}
    except FileNotFoundError:
        return {}, "missing log"
    except (ValueError, OSError, csv.Error) as error:
        return {}, f"corrupt log: {error}"
    kept = np.isfinite(columns["iteration"]) & np.isfinite(columns["train_loss"])
    return {name: values[kept] for name, values in columns.items()}, ""


def _cells(rows: Iterable[dict[str, Any]], name: str) -> Array:
    return np.array([float(row.get(name) or math.nan) for row in rows], dtype=np.float64)
