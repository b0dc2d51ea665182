"""Curvature of the true loss: operators with batched products, eigenpairs, trace, sharpness."""

from .eigen import EigshResult, PowerIterationResult, eigsh, power_iteration
from .operators import CurvatureOperator, EmpiricalFisher, GaussNewton, Hessian
from .sharpness import PerturbationResult, perturbation_sharpness
from .trace import TraceResult, trace

__all__ = [
    "CurvatureOperator",
    "EigshResult",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "PerturbationResult",
    "PowerIterationResult",
    "TraceResult",
    "eigsh",
    "perturbation_sharpness",
    "power_iteration",
    "trace",
]
