"""What is measured on a network at the end of a run."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from ..curvature import Hessian, SpectralDensity, perturbation_sharpness, spectral_density
from ..curvature._solver import uninterrupted
from .config import RunConfig, SettingError, Settings
from .geometry import largest_exponent, turned
from .measures import evaluate
from .network import Classifier, Data, make_set, other_shifts, recurrent

TRACE_SEED = 0
SHARPNESS_SEED = 0
DENSITY_SEED = 0
#: Hessian products for each random vector of the spectral density
DENSITY_STEPS = 80
#: shares of the spectrum, in per cent, below the eigenvalues that a record holds
QUANTILES = (1, 10, 50, 90, 99)

FINAL = (
    "iteration", "train_loss", "train_acc", "test_loss", "test_acc", "shift_loss", "shift_acc",
    "lambda1", "lambda1_l2", "lambda1_full", "lambda1_heldout", "lambda1_w2", "trace",
    "trace_stderr", "rho", "cosine", "norm_ratio", "eta_rho_lambda_half", "weight_change",
    "sharpness_mean", "sharpness_stderr", "sharpness_max", "representation_alignment",
    "kernel_alignment", "lyapunov_start", "lyapunov",
)  # fmt: skip


def final_measures(
    model: Classifier,
    start: Classifier,
    data: Data,
    run: RunConfig,
    vectors: Mapping[str, Tensor],
) -> tuple[dict[str, Any], SpectralDensity | None]:
    """What a run's record holds of its network at the end, and the spectral density if it is asked
    for. ``vectors`` are eigenvectors to start from.
    """
    one = run.settings
    density = final_density(model, data, one)
    now, before = (m.get_parameter(recurrent(m)).detach() for m in (model, start))
    return {
        **final_curvature(model, data, one, vectors),
        **final_sharpness(model, data, one),
        **final_shifts(model, one, run.seed),
        "weight_change": float((now - before).double().norm()),
        **turned(model, start, data, one),
        "lyapunov": largest_exponent(model, data, one),
        **density_quantiles(density),
    }, density


def final_curvature(
    model: nn.Module, data: Data, settings: Settings, start: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Leading eigenvalues (signed) and trace of the true loss's Hessian at the end of a run.

    ``lambda1``: recurrent block, first ``curvature_batch`` training sequences, without L2;
    ``lambda1_l2`` with it; ``lambda1_full``: all parameters; ``lambda1_heldout``: recurrent block
    on test sequences; ``lambda1_w2 = λ₁ ‖W‖²``; ``trace`` of the recurrent block with its standard
    error. ``start`` holds eigenvectors to start from.
    """
    if settings.curvature == "none":
        return {}
    count = settings.curvature_batch
    train = data.train.batch(slice(0, count))
    test = data.test.batch(slice(0, count))
    loss_fn = data.train.loss_fn
    vectors = start or {}
    name = recurrent(model)
    block = Hessian(model, loss_fn, train, params=[name])
    full = Hessian(model, loss_fn, train)
    heldout = Hessian(model, loss_fn, test, params=[name])
    lambda1 = _leading(block, settings, vectors.get("lambda1"))
    trace = uninterrupted(
        block.trace(method="hutchinson", num_products=settings.trace_products, seed=TRACE_SEED)
    )
    weight = model.get_parameter(name)
    return {
        "lambda1": lambda1,
        "lambda1_l2": lambda1 + settings.l2,
        "lambda1_full": _leading(full, settings, vectors.get("lambda1_full")),
        "lambda1_heldout": _leading(heldout, settings, vectors.get("lambda1")),
        "lambda1_w2": lambda1 * float(weight.detach().double().square().sum()),
        "trace": float(trace.value),
        "trace_stderr": float(trace.stderr),
    }


def final_sharpness(model: nn.Module, data: Data, settings: Settings) -> dict[str, float]:
    """Rise of the true training loss under noise of 1 % on the weights, on the batch of curvature.

    ``sharpness_mean`` with its standard error, ``sharpness_max``; nothing if ``sharpness_num`` is
    0.
    """
    if not settings.sharpness_num:
        return {}
    found = perturbation_sharpness(
        model, data.train.loss_fn, data.train.batch(slice(0, settings.curvature_batch)),
        num=settings.sharpness_num, seed=SHARPNESS_SEED,
    )  # fmt: skip
    return {
        "sharpness_mean": found.mean,
        "sharpness_stderr": found.stderr,
        "sharpness_max": found.max,
    }


def final_density(model: nn.Module, data: Data, settings: Settings) -> SpectralDensity | None:
    """Density of the spectrum of the true loss's Hessian, recurrent block, first
    ``curvature_batch`` training sequences, without L2; None if ``density_probes`` is 0.
    """
    if not settings.density_probes:
        return None
    batch = data.train.batch(slice(0, settings.curvature_batch))
    block = Hessian(model, data.train.loss_fn, batch, params=[recurrent(model)])
    found = spectral_density(block, settings.density_probes, DENSITY_STEPS, DENSITY_SEED)
    return uninterrupted(found)  # type: ignore[no-any-return]


def density_quantiles(density: SpectralDensity | None) -> dict[str, float]:
    """Eigenvalues below which 1, 10, 50, 90 and 99 % of the spectrum lie, ``density_q50`` etc."""
    if density is None:
        return {}
    return {f"density_q{q:02d}": density.quantile(q / 100) for q in QUANTILES}


def density_csv(density: SpectralDensity) -> str:
    """Columns ``eigenvalue``, ``density`` and ``std`` (over random vectors; empty for one)."""
    rows = ["eigenvalue,density,std"]
    for eigenvalue, value, std in zip(density.grid, density.density, density.std, strict=True):
        spread = f"{float(std):.9g}" if bool(std == std) else ""
        rows.append(f"{float(eigenvalue):.9g},{float(value):.9g},{spread}")
    return "\n".join(rows) + "\n"


def final_shifts(model: nn.Module, settings: Settings, seed: int) -> dict[str, float | None]:
    """Loss and accuracy under the named shifts that aren't followed along training.

    Keys such as ``shift_delay_loss`` and ``shift_delay_acc``; None for a shift that the task's
    options rule out.
    """
    found: dict[str, float | None] = {}
    for name in other_shifts(settings):
        loss: float | None = None
        accuracy: float | None = None
        with suppress(SettingError):
            loss, accuracy = evaluate(model, make_set(settings, seed, "test", name))
        key = f"shift_{name.replace('-', '_')}"
        found.update({f"{key}_loss": loss, f"{key}_acc": accuracy})
    return found


def _leading(operator: Hessian, settings: Settings, start: Tensor | None) -> float:
    if settings.curvature == "power":
        return uninterrupted(operator.power_iteration(max_iter=settings.final_products)).value
    products = settings.final_products
    found = uninterrupted(operator.eigsh(k=1, tol=1e-2, max_products=products, v0=start))
    return float(found.values[0])
