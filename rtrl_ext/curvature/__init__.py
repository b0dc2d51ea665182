"""Curvature of the true loss: operators with batched products, and what is estimated from them."""

from .eigen import EigshResult, PowerIterationResult, eigsh, power_iteration
from .landscape import Landscape, landscape
from .operators import CurvatureOperator, EmpiricalFisher, GaussNewton, Hessian
from .sharpness import PerturbationResult, perturbation_sharpness
from .spectral import SpectralDensity, spectral_density
from .trace import TraceResult, trace

__all__ = [
    "CurvatureOperator",
    "EigshResult",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "Landscape",
    "PerturbationResult",
    "PowerIterationResult",
    "SpectralDensity",
    "TraceResult",
    "eigsh",
    "landscape",
    "perturbation_sharpness",
    "power_iteration",
    "spectral_density",
    "trace",
]
