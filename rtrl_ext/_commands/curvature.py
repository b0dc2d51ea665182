"""``rtrl-ext curvature``: the curvature of a saved run's true loss."""

import argparse
import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..curvature import CurvatureOperator, EmpiricalFisher, GaussNewton, Hessian, landscape
from ..curvature._params import select
from ..curvature._present import need
from ..study.config import RunConfig
from ..study.network import make_data, make_model, recurrent
from ..study.records import LOG, MODEL, RECORD, clean, writable_folder, write_atomic
from .curvature_options import MATRICES, PICTURES, TRACES
from .options import UsageError
from .train import load_checkpoint, print_table

_OPERATORS = dict(zip(MATRICES, (Hessian, GaussNewton, EmpiricalFisher), strict=True))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

#: a result that prints and plots, and what of it goes into the JSON
Measured = tuple[Any, dict[str, Any]]


def run(arguments: argparse.Namespace) -> int:
    """Measure what was asked for, print it, and draw it."""
    if arguments.power and (arguments.k, arguments.which) != (1, "LM"):
        asked = "--k" if arguments.k != 1 else "--which"
        raise UsageError(
            f"--power: finds one eigenvalue, the largest in modulus; leave out {asked}"
        )
    method, products = _trace_options(arguments)
    picture = _picture(arguments.plot)
    folder = Path(arguments.run)
    if folder.is_file() and folder.name in (MODEL, RECORD, LOG):
        folder = folder.parent
    if not (folder / MODEL).is_file():
        raise FileNotFoundError(f"{folder}: holds no saved run ({MODEL} is missing)")
    saved = load_checkpoint(folder / MODEL)
    config = RunConfig.from_dict(saved["config"])
    if config.settings.cell == "alif":
        raise ValueError(f"{folder}: a run of spiking units, which have no second derivatives")
    data = make_data(config.settings, config.seed)
    model = make_model(config.settings, data.train, config.seed)
    model.load_state_dict(saved["model"])
    part = data.test if arguments.heldout else data.train
    count = min(256, len(part)) if arguments.batch is None else arguments.batch
    if not 1 <= count <= len(part):
        raise UsageError(f"--batch: got {count}, expected 1 to {len(part)}")
    names = _names(model, arguments.params)
    torch.set_num_threads(arguments.threads)
    batch, shown = part.batch(slice(0, count)), sys.stderr.isatty()
    op: CurvatureOperator = _OPERATORS[arguments.matrix](
        model, part.loss_fn, batch, params=names, progress=shown
    )
    size = op.shape[0]
    if arguments.k > size:
        raise UsageError(f"--k: got {arguments.k}, expected 1 to {size}")
    if arguments.landscape and arguments.dim > size:
        raise UsageError(f"--dim: got {arguments.dim}, but there is {size} parameter")
    result: dict[str, Any] = {
        "run": config.run_id,
        "matrix": arguments.matrix,
        "parameters": arguments.params,
        "size": size,
        "split": "test" if arguments.heldout else "train",
        "sequences": count,
    }
    stages: list[Callable[[], Measured]] = [partial(_eigenvalues, op, arguments)]
    if products:
        stages.append(partial(_trace, op, method, products, arguments.seed))
    if arguments.density:
        stages.append(partial(_density, op, arguments))
    if arguments.landscape:
        place = partial(landscape, model, part.loss_fn, batch, params=names, progress=shown)
        stages.append(partial(_landscape, place, arguments))
    drawn, whole = _perform(stages, result)
    if picture is not None and drawn:  # first: standard output may be a pipe that closes early
        write_atomic(picture, _figure(drawn, picture.suffix.lower()[1:]))
        print(f"figure: {picture.resolve()}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(clean(result), indent=1, allow_nan=False))
    else:
        print_table({name: _short(value) for name, value in result.items()})
    if not whole:
        print("rtrl-ext: error: interrupted; what was not measured is left out", file=sys.stderr)
    return 0 if whole else 1


def _perform(
    stages: list[Callable[[], Measured]], result: dict[str, Any]
) -> tuple[list[Any], bool]:
    """Run the stages into ``result``; what can be drawn, and whether none was interrupted."""
    drawn: list[Any] = []
    for stage in stages:
        try:
            found, values = stage()
        except KeyboardInterrupt:
            return drawn, False
        result.update(values)
        drawn.append(found)
        if found.interrupted:
            return drawn, False
    return drawn, True


def _trace_options(arguments: argparse.Namespace) -> tuple[str, int]:
    """Method and number of products; 0: no trace."""
    products = arguments.trace_products
    if arguments.trace is None:
        return "hutchinson", products or 0
    products = 100 if products is None else products
    least = TRACES[arguments.trace]
    if products < least:
        raise UsageError(
            f"--trace-products: got {products}, expected at least {least} with "
            f"--trace {arguments.trace}"
        )
    return arguments.trace, products


def _picture(name: str | None) -> Path | None:
    """Where to draw; what would stop that shows before anything is measured."""
    if name is None:
        return None
    path = Path(name)
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot: got {name}, expected a name that ends in {', '.join(PICTURES)}")
    if path.is_dir():
        raise UsageError(f"--plot: got {name}, a folder, expected a file")
    need("matplotlib.figure", "--plot")
    writable_folder(path.parent)
    return path


def _names(model: torch.nn.Module, chosen: str) -> list[str] | None:
    if chosen == "all":
        return None
    if chosen == "recurrent":
        return [recurrent(model)]
    try:
        return list(select(model, [name.strip() for name in chosen.split(",")]))
    except (ValueError, TypeError) as error:
        raise UsageError(f"--{error} (or 'recurrent', 'all')") from error


def _eigenvalues(op: CurvatureOperator, arguments: argparse.Namespace) -> Measured:
    if arguments.power:
        power = op.power_iteration()
        return power, {
            "eigenvalues": [power.value], "norm": power.norm, "iterations": power.iterations,
            "converged": power.converged,
        }  # fmt: skip
    found = op.eigsh(k=arguments.k, which=arguments.which)
    return found, {
        "which": arguments.which, "eigenvalues": found.values.tolist(),
        "residual_norms": found.residual_norms.tolist(), "products": found.num_products,
        "converged": found.converged,
    }  # fmt: skip


def _trace(op: CurvatureOperator, method: str, products: int, seed: int) -> Measured:
    found = op.trace(method=method, num_products=products, seed=seed)
    return found, {
        "trace": found.value, "trace_stderr": found.stderr, "trace_method": found.method,
        "trace_products": found.num_products,
    }  # fmt: skip


def _density(op: CurvatureOperator, arguments: argparse.Namespace) -> Measured:
    found = op.spectral_density(arguments.probes, arguments.lanczos_steps, arguments.seed)
    values = {
        "lowest": float(found.nodes.min()), "highest": float(found.nodes.max()),
        "quantiles": {str(q): found.quantile(q) for q in QUANTILES},
        "bandwidth": found.bandwidth, "probes": len(found.nodes), "products": found.num_products,
        "converged": found.converged, "grid": found.grid.tolist(),
        "density": found.density.tolist(), "std": found.std.tolist(),
    }  # fmt: skip
    return found, {"density": _Nested(found, values)}


def _landscape(place: Callable[..., Any], arguments: argparse.Namespace) -> Measured:
    found = place(
        directions=arguments.directions, resolution=arguments.resolution, span=arguments.span,
        dim=arguments.dim, seed=arguments.seed,
    )  # fmt: skip
    values = {
        "directions": found.kind, "center": found.center,
        "coordinates": [c.tolist() for c in found.coordinates], "loss": found.loss.tolist(),
        "eigenvalues": None if found.eigenvalues is None else found.eigenvalues.tolist(),
        "converged": found.converged,
    }  # fmt: skip
    return found, {"landscape": _Nested(found, values)}


class _Nested(dict[str, Any]):
    """Values for the JSON, with the result whose one line stands for them in the table."""

    def __init__(self, found: Any, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.found = found


def _short(value: Any) -> Any:
    if not isinstance(value, _Nested):
        return value
    text = repr(value.found).partition("(")[2][:-1]  # without the class's name
    if "quantiles" in value:
        text += "; quantiles " + ", ".join(f"{q}: {v:.4g}" for q, v in value["quantiles"].items())
    return text


def _figure(drawn: list[Any], kind: str) -> bytes:
    """All results side by side."""
    figures = need("matplotlib.figure", "--plot")
    figure = figures.Figure(figsize=(5.2 * len(drawn), 4.0), layout="constrained")
    for ax, found in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        found.plot(ax)
    stream = io.BytesIO()
    with need("matplotlib", "--plot").rc_context({"svg.hashsalt": "rtrl-ext"}):
        stamp = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}[kind]
        figure.savefig(stream, format=kind, dpi=150, metadata={stamp: None})
    return stream.getvalue()
