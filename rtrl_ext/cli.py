"""The command ``rtrl-ext``."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from . import __version__

MOST_THREADS = 1024
MOST_SEEDS = 100_000

# A command's code is imported when it runs, so that `info` and `--help` need only the core.


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (try {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from ._commands.curvature_options import add_curvature
    from ._commands.options import add_presets, add_settings, whole

    threads = whole(1, MOST_THREADS)

    parser = _Parser(
        prog="rtrl-ext",
        description="Online and biologically plausible learning of recurrent networks, and the "
        "curvature of what they learn.",
    )
    parser.add_argument("--version", action="version", version=f"rtrl-ext {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    command = commands.add_parser("info", help="what is installed and what it runs on")
    command.set_defaults(run_command=("info", "info"))

    command = commands.add_parser("train", help="train one network", description=_TRAIN)
    _add_task(command)
    command.add_argument("--rule", required=True, help="bptt, eprop, mdgl, modprop, tbptt:k=5, ...")
    command.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    command.add_argument("--out", metavar="DIR", help="default: rtrl-ext-runs/<name of the run>")
    command.add_argument("--threads", type=threads, default=1, help="default: 1")
    add_presets(command)
    add_settings(command)
    command.set_defaults(run_command=("train", "train"))

    command = commands.add_parser(
        "curvature", help="curvature of a saved run's loss", description=_CURVATURE
    )
    add_curvature(command, threads)

    command = commands.add_parser("study", help="many runs, their records and their report")
    parts = command.add_subparsers(dest="part", metavar="COMMAND", required=True)
    _add_study_run(parts)
    part = parts.add_parser("status", help="the state of each run and how long the rest will take")
    part.add_argument("folder", metavar="DIR")
    part.add_argument("--json", action="store_true", help="print JSON")
    part.set_defaults(run_command=("study_status", "show_status"))
    part = parts.add_parser("config", help="a study's complete configuration, as TOML")
    part.add_argument("folder", metavar="DIR")
    part.set_defaults(run_command=("study", "config"))
    part = parts.add_parser(
        "export", help="all runs as one table: runs.csv, and runs.parquet if pyarrow is installed"
    )
    part.add_argument("folder", metavar="DIR")
    part.add_argument("--out", metavar="DIR", help="where to write (default: the study's folder)")
    part.set_defaults(run_command=("study_status", "export"))
    part = parts.add_parser(
        "report", help="write report.html, figures and tables; of several studies a comparison"
    )
    part.add_argument("folder", metavar="DIR", nargs="+")
    part.add_argument(
        "--out", metavar="DIR",
        help="where to write (default: the study's folder; of several: study-comparison)",
    )  # fmt: skip
    part.add_argument("--no-run-pages", action="store_true", help="no page for each run")
    part.set_defaults(run_command=("study", "report"))
    part = parts.add_parser(
        "theorem", help="critical step sizes of rules, predicted and measured", description=_THEOREM
    )
    part.add_argument(
        "--rules", metavar="A,B,C", default="bptt,eprop,snap1,immediate,tbptt:k=4,mdgl,modprop",
        help="default: %(default)s",
    )  # fmt: skip
    part.add_argument(
        "--residuals", type=whole(1, 64), nargs="+", default=[1, 3], metavar="N",
        help="sequences, each with one residual (default: 1 3)",
    )  # fmt: skip
    part.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of the minimum")
    part.add_argument("--out", metavar="DIR", help="where to write theorem.csv and theorem.png")
    part.add_argument("--json", action="store_true", help="print JSON")
    part.set_defaults(run_command=("theorem", "run"))

    command = commands.add_parser(
        "bench", help="run the benchmarks",
        description="Runs 'python -m benchmarks.run' in the source tree. Options that are not "
        "listed here are passed on to it: --suite, --threads, --quick, --json FILE, ...",
    )  # fmt: skip
    command.add_argument("--compare", metavar="BASELINE.json", help="flag regressions of 5 %%")
    command.set_defaults(run_command=("bench", "bench"))
    return parser


def _add_study_run(parts: Any) -> None:
    from ._commands.options import add_presets, add_settings, seconds, whole

    part = parts.add_parser("run", help="perform what is missing of a study", description=_STUDY)
    part.add_argument(
        "--config", metavar="FILE.toml",
        help="a configuration file, or a ready one: quick, full, paper, remedies, phase; other "
        "options go before it",
    )  # fmt: skip
    part.add_argument(
        "--print-config", action="store_true",
        help="write the complete configuration as TOML and end; read back, it is the same study",
    )  # fmt: skip
    _add_task(part)
    part.add_argument(
        "--rules", metavar="A,B,C", help="rules by name, such as bptt,eprop,tbptt:k=5"
    )
    part.add_argument(
        "--arms", metavar="GROUP|A,B|FILE.toml",
        help="a group (core, remedies, phase, gain, rank), or names among rule, bptt-rho, "
        "projected, matched-noise, rescaled, gradient-noise, online, or a file (default: rule)",
    )  # fmt: skip
    part.add_argument(
        "--seeds", type=whole(1, MOST_SEEDS), metavar="N", help="seeds 0 to N-1 (default: 1)"
    )
    part.add_argument("--out", metavar="DIR", help="folder of the study")
    part.add_argument("--extend", action="store_true", help="add rules, arms or seeds to a study")
    where = part.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=whole(1), metavar="N", help="processes (default: the cores)"
    )
    where.add_argument(
        "--dask", metavar="ADDRESS", help="a Dask scheduler whose workers see the same folder"
    )
    part.add_argument(
        "--dask-timeout", type=seconds, default=10.0, metavar="SECONDS",
        help="how long to wait for the scheduler, and for a first worker (default: 10)",
    )  # fmt: skip
    add_presets(part, study=True)
    add_settings(part)
    part.set_defaults(run_command=("study", "run"))


_TRAIN = (
    "Trains one network and leaves record.json, log.csv and model.pt in a folder. "
    "The same command on the same folder shows the result that is there."
)
_CURVATURE = (
    "Eigenvalues, trace, density of the spectrum and landscape of a saved run's true loss, without "
    "the L2 term."
)
_THEOREM = (
    "The step size at which training by a rule becomes unstable at an interpolating minimum of a "
    "small relu network: predicted from the spectrum of the rule's gradient field and by "
    "2/(rho lambda1), and measured by training from a small deviation. About a minute."
)
_STUDY = (
    "Trains every rule under every arm for every seed, in parallel processes. Stop it at any "
    "moment: the same command finishes what is missing and repeats nothing."
)


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", metavar="NAME[:OPTION=VALUE...]",
        help="seqmnist (the default), delayed-match, pattern, delayed-xor, evidence, neurogym; "
        "with options, such as delayed-match:delay=1000",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code.

    0 on success, 2 on wrong usage, 1 on failure, with one clear line on standard error.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    module, name = arguments.run_command
    try:
        return int(_command(module, name)(arguments))
    except KeyboardInterrupt:
        return _fail(
            "interrupted; finished runs are kept, and the same command goes on from here", 1
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("RTRL_EXT_TRACEBACK"):
            raise
        from ._commands.options import UsageError

        plain = isinstance(error, (ValueError, OSError, ImportError, RuntimeError))
        text = str(error) if plain and str(error) else f"{type(error).__name__}: {error}"
        return _fail(text, 2 if isinstance(error, UsageError) else 1)


def _command(module: str, name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(f"._commands.{module}", __package__), name)


def _fail(message: str, code: int) -> int:
    print(f"rtrl-ext: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
