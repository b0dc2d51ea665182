"""The picture of a ``SharpnessTracker``."""

from typing import Any

import numpy as np

from . import _present


def draw(records: list[dict[str, Any]], ax: Any) -> Any:
    """λ₁, trace, ρ and ηρλ₁ over steps, on four axes."""
    if not records:
        raise ValueError("records: nothing has been measured yet; call update(step) first")
    if ax is not None:
        ax = np.asarray(ax, dtype=object).reshape(-1)
    axes = np.asarray(_present.axes(ax, 2, 2, (8.4, 5.4)), dtype=object).reshape(-1)
    step = np.array([r["step"] for r in records])
    column = {
        name: np.array([r[name] for r in records], dtype=float)
        for name in ("lambda1", "trace", "trace_stderr", "rho", "lr", "eta_rho_lambda1")
    }
    first, second, third, fourth = axes
    first.plot(step, column["lambda1"], "o-", ms=3, color=_present.BLUE, label="λ₁")
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = 2 / (column["lr"] * column["rho"])
    shown = np.isfinite(limit) & (limit > 0)
    if shown.any():
        limit = np.where(shown, limit, np.nan)
        first.plot(step, limit, "--", color=_present.ORANGE, label="limit of stability 2/(ηρ)")
    first.legend(frameon=False, fontsize=8.5)
    first.set_ylabel("λ₁")
    low = column["trace"] - column["trace_stderr"]
    high = column["trace"] + column["trace_stderr"]
    second.fill_between(step, low, high, color=_present.BLUE, alpha=0.25, lw=0)
    second.plot(step, column["trace"], "o-", ms=3, color=_present.BLUE)
    second.set_ylabel("trace ± standard error")
    third.plot(step, column["rho"], "o-", ms=3, color=_present.BLUE)
    third.axhline(1, color=_present.GREY, lw=0.8, ls="--")
    third.set_ylabel("ρ")
    fourth.plot(step, column["eta_rho_lambda1"], "o-", ms=3, color=_present.BLUE)
    fourth.axhline(2, color=_present.ORANGE, lw=0.8, ls="--", label="unstable above 2")
    fourth.set_ylabel("ηρλ₁")
    fourth.legend(frameon=False, fontsize=8.5)
    for a in axes:
        a.set_xlabel("step")
    return axes
