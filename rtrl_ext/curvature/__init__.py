"""Curvature of the true loss: operators with batched products, and what is estimated from them."""

from ._results import EigshResult, PerturbationResult, PowerIterationResult, TraceResult
from .eigen import eigsh, power_iteration
from .landscape import Landscape, landscape
from .operators import CurvatureOperator, EmpiricalFisher, GaussNewton, Hessian
from .sharpness import perturbation_sharpness
from .spectral import SpectralDensity, spectral_density
from .trace import trace
from .tracker import SharpnessTracker

__all__ = [
    "CurvatureOperator",
    "EigshResult",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "Landscape",
    "PerturbationResult",
    "PowerIterationResult",
    "SharpnessTracker",
    "SpectralDensity",
    "TraceResult",
    "eigsh",
    "landscape",
    "perturbation_sharpness",
    "power_iteration",
    "spectral_density",
    "trace",
]
