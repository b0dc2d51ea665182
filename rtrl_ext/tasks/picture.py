"""A picture of one sequence of a task: ``python -m rtrl_ext.tasks.picture --out docs/figures``."""

import argparse
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from .base import Task
from .delayed_match import DelayedMatchToSample
from .delayed_xor import DelayedXOR
from .evidence import EvidenceAccumulation
from .pattern import PatternGeneration
from .registry import TASKS, make, parse

DRAWN = ("delayed-match", "pattern", "delayed-xor", "evidence")


def draw(task: Task, index: int = 0, axes: Any = None) -> Any:
    """Draw input and target of sequence ``index`` into two matplotlib axes; the figure.

    Upper axes: the input, spikes as marks, few channels as lines, else as an image. Lower axes: the
    target where it is a sequence, else the steps that the loss reads, and the class.

    Raises:
        ImportError: matplotlib isn't installed; with the pip line.
        IndexError: there is no such sequence.
    """
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ImportError(
            "pictures of tasks need the package matplotlib: pip install matplotlib"
        ) from error
    if not 0 <= index < len(task):
        raise IndexError(f"index: got {index}, expected 0 to {len(task) - 1}")
    x, target = (part.double().numpy() for part in task[index])
    if axes is None:
        _, axes = pyplot.subplots(
            2, 1, figsize=(7, 3.4), sharex=True, height_ratios=(3, 1.2), layout="constrained"
        )
    time = np.arange(len(x)) * task.dt
    unit = "ms" if isinstance(task, _TIMED) else "step"
    _input(axes[0], x, time, task.dt)
    axes[1].set_xlabel(f"time ({unit})" if unit == "ms" else "step")
    if task.time_targets:
        axes[1].plot(time, target, lw=1.3)
        axes[1].set_ylabel("target")
    else:
        steps = task.output_steps or len(x)
        asked = np.zeros(len(x))
        asked[-steps:] = 1.0
        axes[1].fill_between(time, asked, step="mid", color="#4c78a8", alpha=0.6, lw=0)
        if steps == 1:
            axes[1].axvline(time[-1], color="#4c78a8", lw=2)
        axes[1].set_yticks([])
        axes[1].set_ylabel("asked")
        axes[1].text(
            0.98, 0.5, f"class {int(target)} ", ha="right", va="center",
            transform=axes[1].transAxes,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
    return axes[0].figure


_TIMED = (DelayedMatchToSample, DelayedXOR, EvidenceAccumulation, PatternGeneration)


def _input(ax: Any, x: np.ndarray, time: np.ndarray, dt: float) -> None:
    if np.isin(x, (0.0, 1.0)).all():
        at, line = np.nonzero(x)
        ax.plot(time[at], line, "|", ms=3, color="black", mew=0.8)
        ax.set_ylim(x.shape[1] - 0.5, -0.5)
        ax.set_ylabel("input line")
    elif x.shape[1] <= 4:
        for k in range(x.shape[1]):
            ax.plot(time, x[:, k], lw=1.2, label=f"channel {k}")
        ax.set_ylabel("input")
        ax.legend(loc="upper center", fontsize=8, frameon=False)
    else:
        span = float(np.abs(x).max())
        shown = ax.imshow(
            x.T, aspect="auto", cmap="RdBu_r", vmin=-span, vmax=span, interpolation="nearest",
            extent=(time[0] - dt / 2, time[-1] + dt / 2, x.shape[1] - 0.5, -0.5),
        )  # fmt: skip
        ax.set_ylabel("input channel")
        ax.figure.colorbar(shown, ax=ax, pad=0.01)


def main(arguments: list[str] | None = None) -> int:
    """Write ``task_NAME.png`` for every generated task, or for those that are named."""
    parser = argparse.ArgumentParser(
        prog="python -m rtrl_ext.tasks.picture", description="Pictures of sequences of tasks."
    )
    parser.add_argument(
        "task", nargs="*", default=DRAWN, help=f"names with options, of {', '.join(TASKS)}"
    )
    parser.add_argument("--out", default=".", help="folder of the PNG files (default: here)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, default=0, help="which sequence of the training set")
    options = parser.parse_args(arguments)
    import matplotlib

    matplotlib.use("Agg")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for text in options.task:
        figure = draw(make(text, "train", options.seed), options.index)
        buffer = io.BytesIO()
        # without the version of matplotlib, so that the same data give the same file
        figure.savefig(buffer, dpi=90, format="png", metadata={"Software": None})
        path = folder / f"task_{parse(text)[0].replace('-', '_')}.png"
        path.write_bytes(buffer.getvalue())
        importlib.import_module("matplotlib.pyplot").close(figure)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
