"""The estimators as methods of an operator, and the operator for those of SciPy."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from ._results import EigshResult, PowerIterationResult, TraceResult
    from .spectral import SpectralDensity


class Estimators:
    """What is estimated from products alone."""

    def eigsh(
        self,
        k: int = 1,
        which: str = "LM",
        tol: float = 1e-4,
        max_products: int | None = None,
        v0: Tensor | None = None,
    ) -> "EigshResult":
        """k extreme eigenpairs by a block Krylov method; see ``curvature.eigen.eigsh``."""
        from .eigen import eigsh

        return eigsh(self, k, which, tol, max_products, v0)

    def power_iteration(
        self, tol: float | None = None, max_iter: int = 500, v0: Tensor | None = None
    ) -> "PowerIterationResult":
        """The eigenvalue of largest modulus; see ``curvature.eigen.power_iteration``."""
        from .eigen import power_iteration

        return power_iteration(self, tol, max_iter, v0)

    def trace(
        self, method: str = "hutch++", num_products: int = 100, seed: int | None = None
    ) -> "TraceResult":
        """The trace by random probes; see ``curvature.trace.trace``."""
        from .trace import trace

        return trace(self, method, num_products, seed)

    def spectral_density(
        self,
        num_probes: int = 10,
        lanczos_steps: int = 80,
        seed: int | None = None,
        *,
        bandwidth: float | None = None,
    ) -> "SpectralDensity":
        """The spectrum's density; see ``curvature.spectral.spectral_density``."""
        from .spectral import spectral_density

        return spectral_density(self, num_probes, lanczos_steps, seed, bandwidth=bandwidth)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` over NumPy arrays.

        Raises:
            ImportError: SciPy is missing.
        """
        from ._scipy import to_scipy

        return to_scipy(self)
