"""``rtrl-ext study theorem``."""

import argparse
import csv
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from .. import rules
from ..curvature._progress import Progress
from ..study import theorem
from ..study.config import rule_spec
from ..study.records import writable_folder, write_atomic
from .options import UsageError


def run(arguments: argparse.Namespace) -> int:
    """Predict and measure critical step sizes; print the table, and write it and its figure."""
    names = [part.strip() for part in arguments.rules.split(",") if part.strip()]
    if not names:
        raise UsageError("--rules: got none, expected rules such as bptt,eprop")
    for name in names:
        try:
            _, spec = rule_spec(name)
            if rules.parse(spec).forward_mode:
                raise ValueError(
                    f"{name} runs forward in time; expected rules whose gradient can be "
                    "differentiated, such as bptt, eprop, snap1, tbptt:k=3"
                )
        except (ValueError, TypeError) as error:
            raise UsageError(f"--rules: {error}") from error
    folder = None
    if arguments.out:
        folder = Path(arguments.out)
        writable_folder(folder)
    torch.set_num_threads(1)
    total = len(names) * len(arguments.residuals)
    table: list[theorem.Row] = []
    with Progress("theorem", total, sys.stderr.isatty(), "rows") as line:

        def shown(name: str, count: int) -> None:
            line.update(len(table), f"{name}, {count} residuals")

        for row in theorem.rows(names, arguments.residuals, arguments.seed, shown=shown):
            table.append(row)
    if arguments.json:
        print(json.dumps([asdict(row) for row in table], indent=1))
    else:
        print(theorem.text(table))
        print(f"largest relative difference: {theorem.worst(table):.1e}")
    if folder is not None:
        write_atomic(folder / "theorem.csv", _csv(table))
        theorem.figure(table).save(folder)
        print(f"table and figure: {folder.resolve()}", file=sys.stderr)
    return 0


def _csv(table: list[theorem.Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(asdict(table[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in table)
    return stream.getvalue()
