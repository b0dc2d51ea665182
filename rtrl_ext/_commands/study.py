"""``rtrl-ext study run | config | report``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..curvature._progress import Progress
from ..study.arms import StudyConfig
from ..study.config import SettingError, Settings
from ..study.folder import load_study, open_study
from ..study.network import make_data, make_model
from ..study.online import set_rule
from ..study.plan import Plan, defaults, dump, read_plan
from ..study.runner import run_study
from ..study.status import read_status
from ..study.tomlfile import ConfigError, TomlFile
from .options import UNSET, UsageError, preset_of, setting_overrides, usage_error


def run(arguments: argparse.Namespace) -> int:
    """Perform what is missing of a study."""
    study, file = _study(arguments)
    if arguments.print_config:
        print(dump(study), end="")
        return 0
    if not arguments.out:
        raise UsageError("the following arguments are required: --out")
    if arguments.dask is not None:
        _check_address(arguments.dask)
    # bad data, sizes or rules are told before a folder is made
    data = {}
    try:
        for sizes, one in {_sizes(r.settings): r for r in study.runs()}.items():
            data[sizes] = make_data(one.settings, one.seed).train
    except SettingError as error:
        raise _blamed(error, arguments, file) from error
    for one in {(r.rule_spec, r.kind): r for r in study.runs()}.values():
        network = make_model(one.settings, data[_sizes(one.settings)], 0)
        try:
            set_rule(network, one)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--rules: {error}") from error
    if arguments.dask:
        folder, counts = _on_cluster(arguments, study)
    else:
        folder = open_study(arguments.out, study, extend=arguments.extend)
        counts = run_study(folder, study, workers=arguments.workers)
    total = sum(counts.values())
    parts = [f"{value} {name}" for name, value in counts.items() if value]
    print(f"{total} runs: {', '.join(parts)}; next: rtrl-ext study report {folder}")
    if sum(counts.get(state, 0) for state in ("failed", "waiting", "corrupt")):
        raise RuntimeError(_unfinished(folder, counts))
    return 0


def _unfinished(folder: Path, counts: dict[str, int]) -> str:
    """Why a study is not complete, and what to do."""
    texts = []
    if counts["failed"] or counts["waiting"]:
        texts.append(
            f"{counts['failed']} runs failed and {counts['waiting']} wait for them; see "
            f"'rtrl-ext study status {folder}'; the same command tries them again"
        )
    if counts.get("corrupt"):
        faults = [str(r.error) for r in read_status(folder).runs if r.state == "corrupt"]
        texts += faults[:3] + ([f"and {len(faults) - 3} more"] if len(faults) > 3 else [])
    return "; ".join(texts)


def _on_cluster(arguments: argparse.Namespace, study: StudyConfig) -> tuple[Path, dict[str, int]]:
    """Perform a study on the Dask cluster that was named."""
    from ..study.cluster import connect

    with connect(arguments.dask, arguments.dask_timeout) as cluster:
        folder = open_study(arguments.out, study, extend=arguments.extend)
        cluster.check_folder(folder.resolve())
        # so many at a time that no worker waits for this process
        return folder, run_study(folder, study, workers=max(64, 2 * cluster.size), executor=cluster)


def _check_address(text: str) -> None:
    """`UsageError` if it is neither ``HOST:PORT`` nor ``PROTOCOL://HOST:PORT``."""
    protocol, _, rest = text.rpartition("://")
    host, colon, port = rest.rpartition(":")
    known = ("", "tcp", "tls", "ws", "wss", "ucx")
    if protocol not in known or not host or not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(
            f"--dask: got {text!r}, expected a scheduler's address such as tcp://HOST:8786"
        )


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


def _study(arguments: argparse.Namespace) -> tuple[StudyConfig, TomlFile | None]:
    """The study that file and options ask for, of which options go first; and the file."""
    file = None
    given = setting_overrides(arguments)
    task = given.pop("task")
    try:
        wanted = Plan(
            task=task if arguments.task else None,
            preset=preset_of(arguments, None),
            rules=_rules(arguments.rules) if arguments.rules is not None else None,
            seeds=list(range(arguments.seeds)) if arguments.seeds else None,
            arms=arguments.arms,
            settings=given,
        )
        if arguments.config is not None:
            below = read_plan(arguments.config)
            file = below.file
            wanted = wanted.over(below)
        elif not (wanted.rules or defaults(wanted.preset or "quick", task)["rules"]):
            raise UsageError("--rules is required, for example --rules bptt,eprop,mdgl,modprop")
        return wanted.study(), file
    except UsageError:
        raise
    except ConfigError as error:
        raise UsageError(f"--config: {error}") from error
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise _blamed(error, arguments, file) from error


def _blamed(error: Exception, arguments: argparse.Namespace, file: TomlFile | None) -> UsageError:
    """The error about a setting with the place where it was given: a line of the file or an
    option.
    """
    name = str(error).partition(":")[0]
    given = getattr(arguments, f"set_{name}", getattr(arguments, name, None))
    if file is None or not (given is None or given is UNSET):
        return usage_error(error)
    return UsageError(f"--config: {file.place(error, name)}")


def _rules(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def report(arguments: argparse.Namespace) -> int:
    """Write the report of a study, print its table and say where the report is; of several
    studies, the comparison and each one's report.
    """
    if len(arguments.folder) > 1:
        return _compare(arguments)
    from ..study.report import summary_text, write_report

    folder = Path(arguments.folder[0])
    out = None if arguments.out is None else Path(arguments.out)
    with Progress("report", None, sys.stderr.isatty(), "pages of runs") as line:

        def shown(done: int, total: int) -> None:
            line.update(done, f"of {total}")

        path = write_report(folder, out, pages=not arguments.no_run_pages, shown=shown)
    print(summary_text(folder))
    print(f"\nreport: {path.resolve()}")
    return 0


def config(arguments: argparse.Namespace) -> int:
    """Print the complete configuration of the study in a folder as TOML."""
    print(dump(load_study(arguments.folder)), end="")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from ..study.compare import write_comparison

    count = len(arguments.folder)
    with Progress("comparison", count, sys.stderr.isatty(), "studies") as line:
        try:
            path = write_comparison(
                arguments.folder, arguments.out or "study-comparison",
                pages=not arguments.no_run_pages, shown=lambda k, _, name: line.update(k, name),
            )  # fmt: skip
        except ValueError as error:
            if str(error).startswith("folders: "):
                raise UsageError(f"DIR: {str(error).removeprefix('folders: ')}") from error
            raise
    print(f"comparison of {count} studies: {path.resolve()}")
    return 0
