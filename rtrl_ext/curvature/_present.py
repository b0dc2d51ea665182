"""What results share when they are looked at: axes, tables, and the packages for both."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from .. import _optional

# Okabe and Ito's palette, distinguishable under the common forms of colour blindness
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8f98"


def need(name: str, purpose: str) -> ModuleType:
    """The module ``name``; ``ImportError`` with the pip line if it is not installed."""
    return _optional.need(name, purpose, "pip install 'rtrl_ext[curvature]'")


def axes(ax: Any, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.6)) -> Any:
    """``ax`` itself, or new axes of a pyplot figure: one, or an array for several.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: ``ax`` are not as many as ``rows * columns``.
    """
    plt = need("matplotlib.pyplot", "plot")
    if ax is None:
        _, ax = plt.subplots(rows, columns, figsize=size, layout="constrained")
        for a in [ax] if rows * columns == 1 else ax.flat:
            a.spines[["top", "right"]].set_visible(False)
        return ax
    count = 1 if not hasattr(ax, "__len__") else len(ax)
    if count != rows * columns:
        raise ValueError(f"ax: got {count} axes, expected {rows * columns}")
    return ax


def frame(columns: Mapping[str, Any]) -> Any:
    """A ``pandas.DataFrame`` of columns; ``ImportError`` without pandas."""
    return need("pandas", "to_dataframe").DataFrame(dict(columns))
