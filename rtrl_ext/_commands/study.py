"""``rtrl-ext study run | status | report``."""

import argparse
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..study.arms import StudyConfig, demo
from ..study.config import SettingError, Settings
from ..study.folder import load_study, open_study, status
from ..study.network import make_data, make_model
from ..study.online import set_rule
from ..study.progress import describe, label
from ..study.runner import run_study
from .options import UsageError, preset_of, setting_overrides, usage_error


def run(arguments: argparse.Namespace) -> int:
    """Perform what is missing of a study."""
    study = _study(arguments)
    # bad data, sizes or rules are told before a folder is made
    data = {}
    try:
        for sizes, one in {_sizes(r.settings): r for r in study.runs()}.items():
            data[sizes] = make_data(one.settings, one.seed).train
    except SettingError as error:
        raise usage_error(error) from error
    for one in {(r.rule_spec, r.kind): r for r in study.runs()}.values():
        network = make_model(one.settings, data[_sizes(one.settings)], 0)
        try:
            set_rule(network, one)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--rules: {error}") from error
    with _dask(arguments.dask) if arguments.dask else nullcontext() as executor:
        folder = open_study(arguments.out, study, extend=arguments.extend)
        counts = run_study(folder, study, workers=arguments.workers, executor=executor)
    total = sum(counts.values())
    parts = [f"{value} {name}" for name, value in counts.items() if value]
    print(f"{total} runs: {', '.join(parts)}; next: rtrl-ext study report {folder}")
    if counts["failed"] or counts["waiting"]:
        raise RuntimeError(
            f"{counts['failed']} runs failed and {counts['waiting']} wait for them; see "
            f"'rtrl-ext study status {folder}'; the same command tries them again"
        )
    return 0


def _sizes(settings: Settings) -> tuple[Any, ...]:
    """What decides whether there is data for a run."""
    return (
        settings.task,
        settings.data,
        settings.train_size,
        settings.test_size,
        settings.batch_size,
        settings.shift,
    )


def _study(arguments: argparse.Namespace) -> StudyConfig:
    overrides: dict[str, Any] = setting_overrides(arguments)
    try:
        if arguments.demo:
            if arguments.quick or arguments.paper:
                other = "--paper" if arguments.paper else "--quick"
                raise UsageError(f"--demo: not allowed with {other}")
            fixed = demo()
            rules = _rules(arguments.rules) if arguments.rules else list(fixed.rules)
            return StudyConfig.make(
                rules, seeds=arguments.seeds or len(fixed.seeds), preset="demo",
                arms=arguments.arms or "rule,bptt-rho", **overrides,
            )  # fmt: skip
        if not arguments.rules:
            raise UsageError("--rules is required, for example --rules bptt,eprop,mdgl,modprop")
        return StudyConfig.make(
            _rules(arguments.rules), seeds=1 if arguments.seeds is None else arguments.seeds,
            preset=preset_of(arguments), arms=arguments.arms or "rule", **overrides,
        )  # fmt: skip
    except UsageError:
        raise
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise usage_error(error) from error


def _rules(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            "--dask needs the package distributed: pip install distributed"
        ) from error
    client = Client(address)
    try:
        yield client.get_executor()
    finally:
        client.close()


def show_status(arguments: argparse.Namespace) -> int:
    """Print each run's state and how far it is."""
    rows = status(arguments.folder)
    study = load_study(arguments.folder)
    width = max(len(label(one)) for one, _, _ in rows)
    for one, state, known in rows:
        if state in ("finished", "diverged", "failed"):
            text = describe(state, known)
        elif state == "corrupt":
            text = f"corrupt, {known['error']}"
        elif state == "running" and known:
            limit = one.settings.iterations
            text = f"running, iteration {known['iteration']:.0f} of at most {limit}, "
            text += f"train loss {known['train_loss']:.4g}"
        else:
            text = state
        print(f"{label(one):{width}}  {text}")
    states = [state for _, state, _ in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    print(f"{len(rows)} runs of a {study.preset} study on {study.settings.task}: {counts}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Write the report of a study, print its table and say where the report is."""
    load_study(arguments.folder)
    from ..study.report import summary_text, write_report

    out = None if arguments.out is None else Path(arguments.out)
    path = write_report(Path(arguments.folder), out)
    print(summary_text(Path(arguments.folder)))
    print(f"\nreport: {path.resolve()}")
    return 0
