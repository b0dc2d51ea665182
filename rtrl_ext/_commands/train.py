"""``rtrl-ext train``: one network."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from ..study.config import RunConfig, SettingError, rule_spec, settings, versions
from ..study.folder import differences
from ..study.locks import Claim
from ..study.network import make_data
from ..study.progress import describe, label
from ..study.records import (
    LOCK,
    RECORD,
    read_json,
    read_record,
    writable_folder,
    write_json,
)
from ..study.training import perform
from .options import preset_of, setting_overrides, usage_error

IDENTITY = "run.json"


def train(arguments: argparse.Namespace) -> int:
    """Train one network and leave its record, log and checkpoint in a folder."""
    try:
        preset = preset_of(arguments)
        name, spec = rule_spec(arguments.rule)
        run = RunConfig(
            settings(preset, **setting_overrides(arguments)),
            name,
            spec,
            "rule",
            "rule",
            arguments.seed,
        )
    except (ValueError, TypeError) as error:
        raise usage_error(error) from error
    try:
        make_data(run.settings, run.seed)  # missing data is told before a folder is made
    except SettingError as error:
        raise usage_error(error) from error
    folder = Path(arguments.out) if arguments.out else Path("rtrl-ext-runs") / run.run_id
    torch.set_num_threads(arguments.threads)
    claim = _claim(folder, run)
    try:
        record = read_record(folder)
        if record is not None:
            print(f"{folder} holds this run already", file=sys.stderr)
        else:
            print(f"training {label(run)} in {folder}", file=sys.stderr)
            record = perform(run, folder, run.settings.lr)
    finally:
        claim.release()
    print(f"{label(run)}: {describe(record['status'], record)}")
    print_table({k: v for k, v in record["final"].items() if v is not None})
    print(f"record: {folder / RECORD}")
    return 0


def _claim(folder: Path, run: RunConfig) -> Claim:
    """Lock a folder that is new, empty, or holds this very run; ``ValueError`` otherwise."""
    identity: dict[str, Any] = {"config": run.to_dict(), "versions": versions()}
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder")
    if (folder / IDENTITY).exists():
        found = read_json(folder / IDENTITY)
        differing = differences(found, identity)
        if differing:
            shown = "; ".join(f"{key}: {text}" for key, text in differing)
            raise ValueError(f"{folder}: holds another run, which differs in {shown}")
    elif folder.exists() and any(not p.name.endswith(".tmp") for p in folder.iterdir()):
        raise ValueError(f"{folder}: holds other files, expected an empty or a new folder")
    writable_folder(folder)
    claim = Claim(folder / LOCK)
    if not claim.take():
        raise ValueError(f"{folder}: another process is training there")
    write_json(folder / IDENTITY, identity)
    return claim


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A saved run's model.pt; ``ValueError`` or ``OSError``, in one line, if it is none."""
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise OSError(f"{path}: cannot read it: {error.strerror or error}") from error
    except Exception as error:  # whose text is advice to load what may not be safe
        raise ValueError(f"{path}: corrupt file, expected the checkpoint of a run") from error
    if not isinstance(saved, dict) or not {"config", "model"} <= set(saved):
        raise ValueError(f"{path}: has no 'config' and 'model', expected the checkpoint of a run")
    return saved


def print_table(values: dict[str, Any]) -> None:
    """One line for each value, with its name."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if isinstance(value, list):
            text = " ".join(f"{v:.6g}" for v in value)
        else:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
        print(f"  {name:{width}}  {text}")
