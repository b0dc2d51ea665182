"""Options of ``rtrl-ext curvature``; what it does is in ``curvature.py``."""

import argparse
import math

from .options import whole

TRACES = {"hutchinson": 2, "hutch++": 6, "xtrace": 4}  # least products
MATRICES = ("hessian", "gauss-newton", "fisher")
PICTURES = (".pdf", ".png", ".svg")


def add_curvature(command: argparse.ArgumentParser, threads: object) -> None:
    """The options; ``threads`` reads a number of threads."""
    command.add_argument("run", metavar="RUN", help="folder of a run (of 'train' or of a study)")
    group = command.add_argument_group("which matrix")
    group.add_argument("--matrix", choices=MATRICES, default="hessian", help="default: %(default)s")
    group.add_argument(
        "--params", default="recurrent", metavar="recurrent|all|A,B",
        help="parameters that span it: the recurrent matrix (the default), all, or their names",
    )  # fmt: skip
    group.add_argument("--heldout", action="store_true", help="on test instead of training data")
    group.add_argument("--batch", type=whole(1), help="sequences (default: 256, or all if fewer)")
    group = command.add_argument_group("eigenvalues (always)")
    group.add_argument("--k", type=whole(1), default=1, help="how many (default: 1)")
    group.add_argument(
        "--which", choices=("LM", "LA", "SA"), default="LM",
        help="largest in modulus (the default), largest, or smallest",
    )  # fmt: skip
    group.add_argument(
        "--power", action="store_true", help="one, by power iteration, the paper's measure"
    )
    group = command.add_argument_group("trace")
    group.add_argument("--trace", choices=tuple(TRACES), help="estimate it by this method")
    group.add_argument(
        "--trace-products", type=whole(2, besides=0), metavar="N",
        help="by N products (default: 100); without --trace by Hutchinson's method, 0: not at all",
    )  # fmt: skip
    group = command.add_argument_group("density of the spectrum")
    group.add_argument("--density", action="store_true", help="by stochastic Lanczos quadrature")
    group.add_argument("--probes", type=whole(1), default=10, help="default: %(default)s")
    group.add_argument(
        "--lanczos-steps", type=whole(2), default=80, metavar="N", help="default: %(default)s"
    )
    group = command.add_argument_group("landscape of the loss")
    group.add_argument(
        "--landscape", action="store_true", help="the loss in a plane through the weights"
    )
    group.add_argument("--dim", type=whole(1, 2), default=2, help="1: on a line (default: 2)")
    group.add_argument(
        "--directions", choices=("eigenvectors", "random"), default="eigenvectors",
        help="leading ones of the Hessian (the default), or random ones as long as the weights",
    )  # fmt: skip
    group.add_argument(
        "--resolution", type=whole(2, 1001), default=21, metavar="N",
        help="points along each direction (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--span", type=_span, default=1.0, metavar="S",
        help="from -S to S times each direction (default: 1)",
    )  # fmt: skip
    group = command.add_argument_group("output")
    group.add_argument(
        "--plot", metavar="FILE", help="draw all that is measured (.png, .pdf or .svg)"
    )
    group.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="of random probes and directions"
    )
    command.add_argument("--threads", type=threads, default=1, help="default: 1")  # type: ignore[arg-type]
    command.set_defaults(run_command=("curvature", "run"))


def _span(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"got {value}, expected a finite number above 0")
    return value


_span.__name__ = "float"  # argparse names it in its messages
