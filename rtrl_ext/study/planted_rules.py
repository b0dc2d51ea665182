"""Studies with planted effects of rules: gaps, their spread, curvature, correlations.

Each planted study consists of whole runs: a falling training loss with noise, a test loss and
λ₁ measured now and then and on both sides of each level. Both depend on the training loss (so
that runs that got further have larger gaps) and on the planted effects. They pass through the
same code as recorded runs.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .claims import RELEVANT, Assessment, Claim, assess
from .config import LEVELS
from .load import REFERENCE, Array, Run

START, TOP = 2.3, 1.2
SD_GAP, SD_LOG_LAMBDA = 0.02, 0.35
ROWS, EVERY = 60, 40


@dataclass(frozen=True)
class Plant:
    """What is planted, relative to BPTT, in every other rule at matched training loss.

    ``d``: difference of mean gap in pooled SDs. ``sd_ratio``: ratio of the gap's SDs.
    ``lambda_ratio``: ratio of λ₁. ``r``: correlation of gap and log λ₁ within each rule.
    ``stop``: training loss at the end of training, BPTT's and the others'. ``shared``: share of
    the variance that belongs to the seed, common to all rules. ``tails``: distribution of the
    noise (unit variance whichever).
    """

    name: str
    seeds: int = 30
    rules: tuple[str, ...] = (REFERENCE, "rule-a", "rule-b")
    d: float = 0.0
    sd_ratio: float = 1.0
    lambda_ratio: float = 1.0
    r: float = 0.0
    stop: tuple[float, float] = (0.08, 0.08)
    shared: float = 0.3
    tails: Literal["normal", "heavy", "skewed"] = "normal"

    def truth(self, claim: Claim) -> int | None:
        """1: the claim holds, -1: its opposite, 0: neither; None: an effect too small to be
        scored.
        """
        value = {
            "C1 mean": self.d,
            "C1 variance": math.log(self.sd_ratio),
            "C3": math.log(self.lambda_ratio),
            "C2": self._pooled_r() if claim.subject == "pooled" else self.r,
        }[claim.key]
        if abs(value) < 1e-12:
            return 0
        if claim.key == "C2" and claim.subject != "pooled" and self.sd_ratio != 1:
            value *= self._mixed()  # one common slope for rules of unequal spread
        if abs(value) < RELEVANT[claim.key] - 1e-9:
            return None
        return 1 if value > 0 else -1

    def assess(self, seed: int, resamples: int) -> Assessment:
        """The claims about the study with that seed."""
        return assess(planted_study(self, seed), self.rules, resamples=resamples, seed=seed)

    def offsets(self) -> tuple[float, float]:
        """Planted differences from BPTT: gap, log λ₁."""
        pooled = SD_GAP * math.sqrt((1 + self.sd_ratio**2) / 2)
        return self.d * pooled, math.log(self.lambda_ratio)

    def _mixed(self) -> float:
        spread = [1.0, *[self.sd_ratio] * (len(self.rules) - 1)]
        return float(np.mean(spread) / math.sqrt(np.mean(np.square(spread))))

    def _pooled_r(self) -> float:
        share = 1 - 1 / len(self.rules)
        between = share * (1 - share)
        gap, lam = self.offsets()
        spread = np.array([1.0, *[self.sd_ratio] * (len(self.rules) - 1)]) * SD_GAP
        covariance = self.r * float(spread.mean()) * SD_LOG_LAMBDA + between * gap * lam
        gap_var = float(np.square(spread).mean()) + between * gap**2
        lam_var = SD_LOG_LAMBDA**2 + between * lam**2
        return covariance / math.sqrt(gap_var * lam_var)


CASES = (
    Plant("no effect"),
    Plant("no effect, heavy tails", tails="heavy"),
    Plant("no effect, skewed", tails="skewed"),
    Plant("no effect, 5 seeds", seeds=5),
    Plant("mean, d = 1.5", d=1.5),
    Plant("variance, SD ratio 4", sd_ratio=4.0),
    Plant("mean and variance", d=1.5, sd_ratio=4.0),
    Plant("smallest relevant effects", d=0.5, sd_ratio=1.5, lambda_ratio=1.25, r=0.3),
    Plant("the opposite", d=-1.5, sd_ratio=0.25, lambda_ratio=0.5, r=-0.6),
    Plant("correlation and curvature", r=0.6, lambda_ratio=3.0),
    Plant("Simpson: pooled up, within down", d=4.0, lambda_ratio=6.0, r=-0.6),
    Plant("Simpson: pooled down, within up", d=-4.0, lambda_ratio=6.0, r=0.6),
    Plant("rules undertrained", stop=(0.08, 0.5)),
    Plant("BPTT undertrained", stop=(0.5, 0.08)),
    Plant("rules undertrained, d = 1.5", d=1.5, stop=(0.08, 0.5)),
)


def planted_study(plant: Plant, seed: int) -> list[Run]:
    """The runs of one planted study; ``seed`` fixes them."""
    rng = np.random.default_rng([seed, 20_221])
    gap_offset, lambda_offset = plant.offsets()
    common = noise(rng, plant.tails, (3, plant.seeds))
    runs = []
    for rule in plant.rules:
        own = noise(rng, plant.tails, (3, plant.seeds))
        z = math.sqrt(plant.shared) * common + math.sqrt(1 - plant.shared) * own
        other = rule != REFERENCE
        spread = SD_GAP * (plant.sd_ratio if other else 1.0)
        gap = plant.r * z[0] + math.sqrt(1 - plant.r**2) * z[1]
        accuracy = 0.7 * gap + math.sqrt(1 - 0.49) * z[2]
        for s in range(plant.seeds):
            log = curves(
                rng,
                stop=plant.stop[1 if other else 0],
                gap=spread * gap[s] + gap_offset * other,
                accuracy=spread * accuracy[s] + gap_offset * other,
                log_lambda=SD_LOG_LAMBDA * z[0, s] + lambda_offset * other,
            )
            last = {name: float(values[-1]) for name, values in log.items()}
            run_id = f"{rule}-s{s}"
            config = {"lr": 0.03}
            runs.append(
                Run(run_id, "rule", rule, s, "finished", config=config, final=last, log=log)
            )
    return runs


def noise(rng: np.random.Generator, tails: str, shape: tuple[int, ...]) -> Array:
    """Noise of mean 0 and variance 1."""
    if tails == "heavy":
        return rng.standard_t(5, shape) / math.sqrt(5 / 3)
    if tails == "skewed":
        return (rng.gamma(2.0, 1.0, shape) - 2.0) / math.sqrt(2.0)
    return rng.standard_normal(shape)


def curves(
    rng: np.random.Generator, *, stop: float, gap: float, accuracy: float, log_lambda: float
) -> dict[str, Array]:
    """The log of a run: loss from 2.3 to about ``stop``; offsets reach their full size at loss
    1.2.
    """
    t = np.arange(ROWS) / (ROWS - 1)
    end = math.log(stop) + 0.15 * rng.standard_normal()
    log_loss = math.log(START) + (end - math.log(START)) * t ** rng.uniform(0.5, 0.8)
    log_loss[1:] += 0.01 * rng.standard_normal(ROWS - 1)
    progress = math.log(START) - log_loss
    ramp = np.clip(progress / math.log(START / TOP), 0.0, 1.0)
    loss = np.exp(log_loss)
    test = loss + 0.05 * np.maximum(progress, 0) ** 2 + ramp * gap
    train_accuracy = 1 - loss / START * 0.9
    log = {
        "iteration": np.arange(ROWS, dtype=np.float64) * EVERY,
        "train_loss": loss,
        "train_acc": train_accuracy,
        "test_loss": test,
        "test_acc": train_accuracy - 0.02 * progress - ramp * accuracy,
        "shift_loss": test + 0.05,
        "shift_acc": train_accuracy - 0.02 * progress - ramp * accuracy - 0.02,
        "rho": np.full(ROWS, 0.3),
        "cosine": np.full(ROWS, 0.6),
        "norm_ratio": np.full(ROWS, 0.5),
        "lambda1": np.exp(math.log(20.0) + 0.6 * progress + ramp * log_lambda),
        "lambda1_full": np.exp(math.log(30.0) + 0.6 * progress + ramp * log_lambda),
    }
    skip = np.arange(ROWS)
    measured = skip == ROWS - 1
    for level in LEVELS:
        for reached in np.flatnonzero(loss <= level)[:1]:
            measured[reached - 1 : reached + 1] = True
    for names, step in (
        (("test_loss", "test_acc", "shift_loss", "shift_acc"), 2),
        (("lambda1", "lambda1_full"), 3),
    ):
        for name in names:
            log[name][(skip % step != 0) & ~measured] = np.nan
    return log
