"""Rows of results: from timings to tables, JSON and comparison with a stored run."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .harness import SGEMM, Contestant, Timings, ratio
from .problem import SGEMM_FLOPS

REGRESSION = 1.05
#: `against` of a row that says how many times faster than a peer.
SPEED = "speed of "


@dataclass
class Row:
    """One measured figure.

    `ratio` (median of paired ratios) and `ratio_best` (ratio of best times) refer to `against`:
    "floor", the name of another contestant, "speed of ..." (how many times faster than that
    contestant), or None where only seconds mean something.
    """

    suite: str
    case: str
    name: str
    threads: int
    seconds: float
    seconds_best: float
    ours: bool = False
    samples: int = 0
    against: str | None = None
    ratio: float | None = None
    ratio_best: float | None = None
    bound: float | None = None
    at_least: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.bound is None or self.ratio is None:
            return None
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound

    @property
    def key(self) -> tuple[str, str, str, int, str | None]:
        return (self.suite, self.case, self.name, self.threads, self.against)


def rows_from(
    suite: str, case: str, contestants: Sequence[Contestant], timings: Timings
) -> list[Row]:
    """A row against the floor for each contestant that has one, and one against its baseline.

    One more for each contestant that it should be faster than, if that one was timed.
    """
    rows: list[Row] = []
    for (name, th), timing in timings.items():
        if name == SGEMM:
            rate = SGEMM_FLOPS / timing.median / 1e9
            best = SGEMM_FLOPS / timing.best / 1e9
            info = {"gflops": round(rate, 1), "gflops_best": round(best, 1)}
            rows.append(
                Row(suite, case, name, th, timing.median, timing.best,
                    samples=len(timing.by_round), info=info)
            )  # fmt: skip
            continue
        c = next(c for c in contestants if c.name == name)
        base: dict[str, Any] = {
            "ours": c.ours,
            "samples": len(timing.by_round),
            "info": {**c.info, "cpu_per_wall": round(timing.cpu_per_wall, 2)},
        }
        made = False
        if c.flops is not None and (SGEMM, th) in timings:
            med, best = ratio(timing, timings[SGEMM, th], c.flops / SGEMM_FLOPS)
            bound = c.bound if c.bound_on == "floor" else None
            rows.append(
                Row(suite, case, name, th, timing.median, timing.best, against="floor", ratio=med,
                    ratio_best=best, bound=bound, **base)
            )  # fmt: skip
            made = True
        if c.baseline is not None and (c.baseline, th) in timings:
            med, best = ratio(timing, timings[c.baseline, th])
            bound = c.bound if c.bound_on == "baseline" else None
            rows.append(
                Row(suite, case, name, th, timing.median, timing.best, against=c.baseline,
                    ratio=med, ratio_best=best, bound=bound, **base)
            )  # fmt: skip
            made = True
        for peer, bound in c.faster_than.items():
            if (peer, th) in timings:
                med, best = ratio(timings[peer, th], timing)
                rows.append(
                    Row(suite, case, name, th, timing.median, timing.best, against=SPEED + peer,
                        ratio=med, ratio_best=best, bound=bound, at_least=True,
                        **{**base, "info": {}})
                )  # fmt: skip
        if not made:
            rows.append(Row(suite, case, name, th, timing.median, timing.best, **base))
    return rows


def thread_rows(rows: Iterable[Row], bound: float | None) -> list[Row]:
    """Share of sgemm's own gain from more threads: (times floor at 1) / (times floor at th)."""
    floors = {(r.suite, r.case, r.name, r.threads): r for r in rows if r.against == "floor"}
    out = []
    for (suite, case, name, th), row in floors.items():
        one = floors.get((suite, case, name, 1))
        if th == 1 or one is None or row.ratio is None or one.ratio is None:
            continue
        assert row.ratio_best is not None and one.ratio_best is not None
        out.append(
            Row(suite, case, name, th, row.seconds, row.seconds_best, ours=row.ours,
                samples=row.samples, against="sgemm's gain", ratio=one.ratio / row.ratio,
                ratio_best=one.ratio_best / row.ratio_best,
                bound=bound if row.ours else None, at_least=True)
        )  # fmt: skip
    return out


def save(path: str | pathlib.Path, meta: dict[str, Any], rows: Sequence[Row]) -> None:
    data = {"meta": meta, "rows": [{**asdict(r), "met": r.met} for r in rows]}
    pathlib.Path(path).write_text(json.dumps(data, indent=1) + "\n")


def load(path: str | pathlib.Path) -> tuple[dict[str, Any], list[Row]]:
    """Reads a file written by `save`; ValueError if it is not one."""
    try:
        data = json.loads(pathlib.Path(path).read_text())
        rows = [Row(**{k: v for k, v in r.items() if k != "met"}) for r in data["rows"]]
        return data["meta"], rows
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a benchmark result file ({error})") from error


@dataclass
class Change:
    """How one ratio of ours moved from a stored run."""

    key: tuple[str, str, str, int, str | None]
    old: float
    new: float
    regressed: bool


def compare(old: Sequence[Row], new: Sequence[Row]) -> list[Change]:
    """Ratios of ours in both runs. A regression is 5 % worse in the median and in the best."""
    before = {r.key: r for r in old}
    changes = []
    for row in new:
        was = before.get(row.key)
        if not row.ours or was is None or not row.ratio or not was.ratio:
            continue
        moves = [
            (was.ratio / row.ratio) if row.at_least else (row.ratio / was.ratio),
        ]
        if row.ratio_best and was.ratio_best:
            best = row.ratio_best / was.ratio_best
            moves.append(1 / best if row.at_least else best)
        changes.append(Change(row.key, was.ratio, row.ratio, min(moves) > REGRESSION))
    return changes


def _cell(row: Row) -> list[str]:
    def number(v: float | None) -> str:
        return "" if v is None else f"{v:.2f}"

    bound = "" if row.bound is None else ("≥ " if row.at_least else "≤ ") + f"{row.bound:g}"
    met = {True: "met", False: "NOT MET", None: ""}[row.met]
    return [
        row.name, str(row.threads), f"{row.seconds * 1e3:.3g}", row.against or "",
        number(row.ratio), number(row.ratio_best), bound, met, _info(row.info),
    ]  # fmt: skip


HEADER = ["contestant", "threads", "ms", "against", "ratio", "best", "bound", "", "more"]


def _info(info: dict[str, Any]) -> str:
    parts = []
    for key, value in info.items():
        if isinstance(value, float) or (isinstance(value, int) and value >= 100_000):
            value = f"{value:.3g}"
        parts.append(f"{key} {value}")
    return ", ".join(parts)


def print_tables(rows: Sequence[Row], stream: Any = None) -> None:
    """One table per (suite, case); with rich if it is installed."""
    stream = stream or sys.stdout
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.suite, row.case), []).append(row)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        Console = None  # type: ignore[assignment,misc]
    for (suite, case), members in groups.items():
        cells = [_cell(r) for r in members]
        if Console is not None and stream.isatty():
            table = Table(*HEADER, title=f"{suite}: {case}")
            for line in cells:
                table.add_row(*line)
            Console(file=stream).print(table)
            continue
        widths = [max(len(line[i]) for line in [HEADER, *cells]) for i in range(len(HEADER))]
        print(f"\n{suite}: {case}", file=stream)
        for line in [HEADER, *cells]:
            text = "  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True))
            print(text.rstrip(), file=stream)


def markdown(rows: Sequence[Row]) -> str:
    """The same tables in Markdown."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.suite, row.case), []).append(row)
    out = []
    for (suite, case), members in groups.items():
        out.append(f"\n### {suite}: {case}\n")
        out.append("| " + " | ".join(HEADER) + " |")
        out.append("|" + "---|" * len(HEADER))
        out += ["| " + " | ".join(_cell(r)) + " |" for r in members]
    return "\n".join(out) + "\n"
