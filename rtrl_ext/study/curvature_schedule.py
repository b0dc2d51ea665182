"""When the leading eigenvalues are taken along training, and what that may cost."""

from collections.abc import Callable

from torch import Tensor, nn

from ..curvature import Hessian
from .config import LEVELS, Settings
from .network import RECURRENT

#: cost of one Hessian product per sequence, in training gradients (forward and backward) per sequence
PRODUCT_COST = 3.0
#: cost of one evaluation per sequence, in the same unit
EVALUATION_COST = 0.35
#: cost of one measurement of gradient quality per sequence: a forward and two backwards
ALIGNMENT_COST = 1.7
#: relative residual at which the warm-started Lanczos stops: λ is then right to about its square
TOLERANCE = 0.05


class CurvatureSchedule:
    """Leading Hessian eigenvalues of the true loss along training, within a budget of work.

    Checkpoints are log-spaced on the grid of evaluations (0, 1, 2, 4, ... times ``eval_every``), and wherever
    the training loss first falls below a level at which runs are compared. Each is a Lanczos run, started
    from the last one's vector, of at most ``curvature_products`` products on a fixed batch. Work is counted, not
    timed, so that the same configuration takes the same measurements: a checkpoint is left out where it would
    carry curvature above ``curvature_budget`` of the work of training so far. With ``curvature="power"`` the
    measure is the paper's power iteration, at ``curvature_points`` evenly spaced iterations, without a budget.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        batch: tuple[Tensor, Tensor],
    ) -> None:
        self.settings = settings
        self._block = Hessian(model, loss_fn, batch, params=[RECURRENT])
        self._full = Hessian(model, loss_fn, batch)
        self._sequences = batch[0].shape[1]
        self._vectors: dict[str, Tensor] = {}
        self._levels = list(LEVELS)
        self.training_work = 0.0
        self.curvature_work = 0.0

    def measure(self, iteration: int, train_loss: float) -> dict[str, float]:
        """``lambda1`` (recurrent block) and ``lambda1_full`` if they are due now, else nothing."""
        if self.settings.curvature == "none":
            return {}
        if self.settings.curvature == "power":
            return self._power() if self._even(iteration) else {}
        crossed = self._crossed(train_loss)
        spaced = self._log_spaced(iteration)
        if not (crossed or spaced):
            return {}
        found: dict[str, float] = {}
        # a level's measurement may use the whole budget, another one only what leaves room for levels
        share = self.settings.curvature_budget * (1.0 if crossed else 0.6)
        for name, operator in (("lambda1", self._block), ("lambda1_full", self._full)):
            room = share * self.training_work - self.curvature_work
            products = min(int(room / self._product_work), self.settings.curvature_products)
            if iteration == 0:  # there is no work yet to take a share of
                products = self.settings.curvature_products
            if products >= 3:
                found[name] = self._lanczos(name, operator, products)
        return found

    @property
    def _product_work(self) -> float:
        return PRODUCT_COST * self._sequences

    def _lanczos(self, name: str, operator: Hessian, products: int) -> float:
        result = operator.eigsh(
            k=1, tol=TOLERANCE, max_products=products, v0=self._vectors.get(name)
        )
        self._vectors[name] = result.vectors[:, 0]
        self.curvature_work += result.num_products * self._product_work
        return float(result.values[0])

    def _power(self) -> dict[str, float]:
        found = self._block.power_iteration(max_iter=500)
        self.curvature_work += found.iterations * self._product_work
        return {"lambda1": found.value}

    def _crossed(self, train_loss: float) -> bool:
        below = [level for level in self._levels if train_loss <= level]
        self._levels = [level for level in self._levels if level not in below]
        return bool(below)

    def _log_spaced(self, iteration: int) -> bool:
        count, rest = divmod(iteration, self.settings.eval_every)
        return rest == 0 and (count & (count - 1)) == 0

    def _even(self, iteration: int) -> bool:
        points = min(self.settings.curvature_points, self.settings.iterations)
        step = self.settings.iterations / points
        return int(iteration / step) != int((iteration - self.settings.eval_every) / step)


def first_sequences(batch: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` sequences of a time-major batch."""
    x, target = batch
    return x[:, :count].contiguous(), target[:count]
