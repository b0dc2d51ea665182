"""The statistical tests of a study: plain functions of arrays, no knowledge of rules or files.

Each returns an `Estimate`: effect, 95 % interval, a primary p-value (which enters Holm's
correction) and a second one that does not lean on the same assumptions. All p-values are
two-sided.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .load import Array
from .optional import need

RESAMPLES = 9_999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """An effect with its 95 % interval; ``unit`` scales it to the size that counts as relevant.

    ``n`` is the smallest number of seeds on any side, ``points`` the number of runs used.
    """

    effect: float
    low: float
    high: float
    p: float
    p_check: float
    n: int
    points: int
    unit: float = 1.0

    @property
    def standardized(self) -> float:
        """Effect in units of ``unit``."""
        return self.effect / self.unit if self.unit > 0 else math.nan


def mean_difference(a: Array, b: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean of ``a`` minus mean of ``b``: Welch's test, permutation test, BCa interval.

    ``unit`` is the pooled standard deviation ``sqrt((s_a² + s_b²)/2)``, so ``standardized`` is
    Cohen's d.
    """
    stats = need("scipy.stats", "the statistics of a study")
    n = min(len(a), len(b))
    effect = float(np.mean(a) - np.mean(b)) if n else math.nan
    if n < 2:
        return _unknown(effect, n, len(a) + len(b))
    unit = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    if unit <= 1e-12 * max(abs(float(np.mean(a))), abs(float(np.mean(b))), 1e-300):
        return _unknown(effect, n, len(a) + len(b))
    welch = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    check = stats.permutation_test(
        (a, b),
        _difference,
        n_resamples=resamples,
        vectorized=True,
        **_rng("permutation_test", seed),
    )
    low, high = _interval((a, b), _difference, resamples, seed)
    return Estimate(effect, low, high, welch, float(check.pvalue), n, len(a) + len(b), unit)


def log_sd_ratio(a: Array, b: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """``log(SD a / SD b)``: Brown-Forsythe test and bootstrap (BCa) interval."""
    stats = need("scipy.stats", "the statistics of a study")
    n = min(len(a), len(b))
    if n < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return _unknown(math.nan if n < 2 else float(_log_sd(a, b)), n, len(a) + len(b))
    p = float(stats.levene(a, b, center="median").pvalue)
    low, high = _interval((a, b), _log_sd, resamples, seed)
    return Estimate(float(_log_sd(a, b)), low, high, p, p, n, len(a) + len(b))


def paired_mean(d: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean of paired differences ``d`` (one per seed): paired t, sign-flip permutation, BCa
    interval.
    """
    stats = need("scipy.stats", "the statistics of a study")
    n = len(d)
    effect = float(np.mean(d)) if n else math.nan
    if n < 2 or np.ptp(d) == 0:
        return _unknown(effect, n, n)
    p = float(stats.ttest_1samp(d, 0.0).pvalue)
    check = stats.permutation_test(
        (d, np.zeros_like(d)),
        _difference,
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        **_rng("permutation_test", seed),
    )
    low, high = _interval((d,), np.mean, resamples, seed)
    return Estimate(effect, low, high, p, float(check.pvalue), n, n)


def correlation(
    x: Array,
    y: Array,
    clusters: Sequence[Any],
    controls: Array | None = None,
    *,
    n: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Pearson correlation of ``x`` and ``y`` (points,) given ``controls`` (points, q).

    Fisher's z with the controls taken off its degrees of freedom, and a BCa interval from the
    bootstrap over ``clusters`` (a cluster's points stay together). ``p_check`` repeats Fisher's
    p: the interval is the second opinion. ``n`` is what to report as the number of seeds
    (default: the number of clusters).
    """
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    points, count = len(x), len(names)
    n = count if n is None else n
    base = (
        np.ones((points, 1)) if controls is None else np.column_stack([np.ones(points), controls])
    )
    base = _independent(base)
    free = points - (base.shape[1] - 1) - 3
    if free < 1:
        return _unknown(math.nan, n, points)
    columns = np.column_stack([base, _standard(x), _standard(y)])
    products = np.einsum("ki,kj->kij", columns, columns).reshape(points, -1)
    sums = np.zeros((count, products.shape[1]))
    np.add.at(sums, member, products)

    def statistic(index: Any, axis: int = -1) -> Any:
        index = np.moveaxis(np.asarray(index), axis, -1).astype(np.int64)
        flat = index.reshape(-1, index.shape[-1])
        weights = np.zeros((len(flat), count))
        np.add.at(weights, (np.arange(len(flat))[:, None], flat), 1.0)
        size = columns.shape[1]
        return _partial((weights @ sums).reshape(-1, size, size)).reshape(index.shape[:-1])

    r = float(statistic(np.arange(count)))
    if not math.isfinite(r) or count < 3:
        return _unknown(r, n, points)
    z = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15)) * math.sqrt(free)
    p = math.erfc(abs(z) / math.sqrt(2))
    low, high = _interval((np.arange(count, dtype=np.float64),), statistic, resamples, seed)
    return Estimate(r, low, high, p, p, n, points)


def slope(
    x: Array, y: Array, clusters: Sequence[Any], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, float, float]:
    """Least-squares slope of ``y`` on ``x`` (points,), with its intercept and R².

    ``p`` is the t test of the regression, ``p_check`` that of the jackknife over ``clusters`` (a
    cluster's points stay together); the interval is BCa from the bootstrap over clusters. ``n`` is
    the number of clusters.
    """
    stats = need("scipy.stats", "the statistics of a study")
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    count, points = len(names), len(x)
    if points < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return _unknown(math.nan, count, points), math.nan, math.nan
    line = stats.linregress(x, y)
    found = float(line.slope), float(line.intercept), float(line.rvalue) ** 2
    if count < 3:
        return _unknown(found[0], count, points), found[1], found[2]
    u, v = x - np.mean(x), y - np.mean(y)
    sums = np.zeros((count, 5))
    np.add.at(sums, member, np.column_stack([np.ones(points), u, v, u * u, u * v]))

    def statistic(index: Any, axis: int = -1) -> Any:
        index = np.moveaxis(np.asarray(index), axis, -1).astype(np.int64)
        flat = index.reshape(-1, index.shape[-1])
        weights = np.zeros((len(flat), count))
        np.add.at(weights, (np.arange(len(flat))[:, None], flat), 1.0)
        return _slope(weights @ sums).reshape(index.shape[:-1])

    left = _slope(sums.sum(axis=0) - sums)
    error = math.sqrt((count - 1) / count * float(np.square(left - left.mean()).sum()))
    check = 2 * float(stats.t.sf(abs(found[0]) / error, count - 1)) if error > 0 else math.nan
    low, high = _interval((np.arange(count, dtype=np.float64),), statistic, resamples, seed)
    p = float(line.pvalue)
    return Estimate(found[0], low, high, p, check, count, points), found[1], found[2]


def _slope(sums: Array) -> Array:
    """Slopes from rows of n, Σx, Σy, Σx², Σxy."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((n * xy - x * y) / (n * xx - x * x), dtype=np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; NaN stays NaN and counts as no test."""
    order = sorted((p, i) for i, p in enumerate(p_values) if math.isfinite(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


def _unknown(effect: float, n: int, points: int) -> Estimate:
    return Estimate(effect, math.nan, math.nan, math.nan, math.nan, n, points)


def _difference(a: Any, b: Any, axis: int = -1) -> Any:
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)


def _log_sd(a: Any, b: Any, axis: int = -1) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.std(a, axis=axis, ddof=1)) - np.log(np.std(b, axis=axis, ddof=1))


def _standard(x: Array) -> Array:
    sd = float(np.std(x))
    return (x - np.mean(x)) / (sd if sd > 0 else 1.0)


def _independent(columns: Array) -> Array:
    """Orthonormal columns with the same span, the first one constant."""
    kept = [columns[:, 0] / np.linalg.norm(columns[:, 0])]
    for k in range(1, columns.shape[1]):
        v = columns[:, k]
        size = float(np.linalg.norm(v))
        for _ in range(2):
            for u in kept:
                v = v - u * (u @ v)
        if np.linalg.norm(v) > 1e-8 * max(size, 1e-300):
            kept.append(v / np.linalg.norm(v))
    return np.column_stack(kept)


def _partial(gram: Array) -> Array:
    """Correlation of the last two columns given the others, from Gram matrices (count, q, q)."""
    base, cross, own = gram[:, :-2, :-2], gram[:, :-2, -2:], gram[:, -2:, -2:]
    rest = own - np.swapaxes(cross, 1, 2) @ (np.linalg.pinv(base, hermitian=True) @ cross)
    scale = rest[:, 0, 0] * rest[:, 1, 1]
    usable = (rest[:, 0, 0] > 1e-9 * own[:, 0, 0]) & (rest[:, 1, 1] > 1e-9 * own[:, 1, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(usable, np.clip(rest[:, 0, 1] / np.sqrt(scale), -1, 1), np.nan)


def _interval(
    samples: tuple[Array, ...], statistic: Callable[..., Any], resamples: int, seed: int
) -> tuple[float, float]:
    """BCa interval; the percentile interval where BCa does not exist, NaN below three values."""
    stats = need("scipy.stats", "the statistics of a study")
    if min(len(s) for s in samples) < 3:
        return math.nan, math.nan
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                samples,
                statistic,
                n_resamples=resamples,
                confidence_level=CONFIDENCE,
                method=method,
                vectorized=True,
                **_rng("bootstrap", seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    return math.nan, math.nan


@cache
def _keyword(function: str) -> str:
    stats = need("scipy.stats", "the statistics of a study")
    return (
        "rng" if "rng" in inspect.signature(getattr(stats, function)).parameters else "random_state"
    )


def _rng(function: str, seed: int) -> dict[str, Any]:
    """The seeded generator as the keyword that this scipy takes."""
    return {_keyword(function): np.random.default_rng(seed)}
