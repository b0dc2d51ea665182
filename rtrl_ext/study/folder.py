"""The folder of a study: made, checked, and read back."""

from pathlib import Path
from typing import Any

from .arms import FORMAT, StudyConfig
from .config import RunConfig
from .locks import Claim
from .progress import last_row
from .records import (
    LOCK,
    LOG,
    RUNS,
    STUDY,
    read_json,
    read_record,
    writable_folder,
    write_json,
)


def open_study(folder: str | Path, study: StudyConfig, *, extend: bool = False) -> Path:
    """Make the study's folder, or check that an existing one holds this very study.

    With ``extend`` the study may have rules, arms and seeds beyond those in the folder, which then
    holds them all. Nothing is changed by a refused call.

    Raises:
        ValueError: the folder holds another study (the differing keys are named) or other files.
        OSError: it cannot be written.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place}: is a file, expected a folder")
    wanted = study.to_dict()
    if (place / STUDY).exists():
        found = read_json(place / STUDY)
        differing = differences(found, wanted)
        grown = [k for k in ("rules", "arms", "seeds") if _grown(found.get(k), wanted[k])]
        # arms carry their settings along
        growth = set(grown) | ({"arm_settings"} if "arms" in grown else set())
        kept = all(wanted["arm_settings"].get(k) == v for k, v in _arm_settings(found).items())
        if differing and not (extend and kept and {k for k, _ in differing} <= growth):
            raise ValueError(
                f"{place}: holds another study, which differs in "
                f"{_told(differing, found, wanted)}; choose another folder"
                f"{_hint({k for k, _ in differing}, growth, extend)}"
            )
        writable_folder(place / RUNS)
        if differing:
            write_json(place / STUDY, wanted)
        return place
    if place.exists():
        foreign = sorted(p.name for p in place.iterdir() if not p.name.endswith(".tmp"))
        if foreign:
            raise ValueError(
                f"{place}: holds other files ({', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}), expected an empty or a new folder"
            )
    writable_folder(place)
    write_json(place / STUDY, wanted)
    writable_folder(place / RUNS)
    return place


def _grown(found: Any, wanted: Any) -> bool:
    return isinstance(found, list) and found != wanted and set(found) < set(wanted)


def _told(differing: list[tuple[str, str]], found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The differences; settings of arms that one of the two doesn't have say nothing more."""
    old, new = _arm_settings(found), _arm_settings(wanted)
    same = all(old[k] == new[k] for k in old.keys() & new.keys())
    hidden = {"arm_settings"} if same and "arms" in dict(differing) else set()
    return "; ".join(f"{key}: {text}" for key, text in differing if key not in hidden)


def _hint(differing: set[str], growth: set[str], extend: bool) -> str:
    if differing <= growth:
        return " (--extend adds rules, arms and seeds)"
    if extend and differing <= {"rules", "arms", "seeds", "arm_settings"}:
        return " (with --extend name the rules, arms and seeds that it has, and the new ones)"
    return ""


def _arm_settings(found: dict[str, Any]) -> dict[str, Any]:
    value = found.get("arm_settings")
    return value if isinstance(value, dict) else {}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, str]]:
    """The keys in which two configurations differ, each with ``it has ..., asked for ...``."""
    result = []
    for key in sorted(set(found) | set(wanted)):
        old, new = found.get(key), wanted.get(key)
        if key == "hash" or old == new:
            continue
        if key in ("config", "versions") and isinstance(old, dict) and isinstance(new, dict):
            for name in sorted(set(old) | set(new)):
                if old.get(name) != new.get(name):
                    text = f"it has {old.get(name)!r}, asked for {new.get(name)!r}"
                    result.append((name if key == "config" else f"versions.{name}", text))
            continue
        result.append((key, f"it has {_short(old)}, asked for {_short(new)}"))
    return result


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def load_study(folder: str | Path) -> StudyConfig:
    """The study in a folder; ``ValueError`` if there is none or its file can't be used."""
    path = Path(folder) / STUDY
    if not path.is_file():
        raise ValueError(f"{folder}: holds no study ({STUDY} is missing)")
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise ValueError(f"{path}: has format {values.get('format')!r}, expected {FORMAT}")
    try:
        return StudyConfig.from_dict(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: corrupt file: {error}") from error


def status(folder: str | Path) -> list[tuple[RunConfig, str, dict[str, Any]]]:
    """Each run with its state and what is known of it.

    States: ``finished``, ``diverged``, ``failed`` (with the record), ``running`` (with the newest
    row of its log), ``waiting``, ``corrupt`` (with the reason as ``error``).
    """
    place = Path(folder)
    result: list[tuple[RunConfig, str, dict[str, Any]]] = []
    study = load_study(place)
    known: dict[tuple[str, str, int], Path] = {}  # a run made by other versions has another name
    for path in sorted((place / RUNS).glob("*/record.json")):
        try:
            made = read_record(path.parent)
        except ValueError:
            continue  # named below if it is in the place of one of the study's runs
        if made is not None:
            known[made["rule"], made["arm"], made["seed"]] = path.parent
    for run in study.runs():
        path = known.get((run.rule, run.arm, run.seed), place / RUNS / run.run_id)
        try:
            record = read_record(path)
        except ValueError as error:
            result.append((run, "corrupt", {"error": str(error)}))
            continue
        if record is not None:
            result.append((run, str(record["status"]), record))
        elif Claim.held(path / LOCK):
            result.append((run, "running", dict(last_row(path / LOG))))
        else:
            result.append((run, "waiting", {}))
    return result
