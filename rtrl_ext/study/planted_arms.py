"""Studies with planted effects of arms: step sizes and the stability limit (C4), remedies (C5)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .claims import RELEVANT, Assessment, Claim, assess
from .load import REFERENCE, Run
from .planted_rules import SD_GAP, SD_LOG_LAMBDA, curves, noise

RATES = (0.003, 0.01, 0.03, 0.1)
RHO = {REFERENCE: 1.0, "rule-a": 0.35, "rule-b": 0.15}
RULES = tuple(RHO)


@dataclass(frozen=True)
class EdgePlant:
    """λ₁ at the end over step sizes, of three rules with ρ = 1, 0.35 and 0.15.

    ``law``: what λ₁ is. ``limit``: the stability limit 2/(ηρ) but not above ``natural``, which
    training reaches by itself; ``eta``: 2/η whatever ρ is; ``power``: ``natural`` times the limit
    over ``natural`` to the power ``slope``. ``sd``: of log λ₁ besides.
    """

    name: str
    law: Literal["limit", "eta", "power"] = "limit"
    natural: float = 5_000.0
    slope: float = 0.0
    sd: float = 0.12
    seeds: int = 30
    rules: tuple[str, ...] = RULES

    def truth(self, claim: Claim) -> int | None:
        """1: the claim holds, -1: its opposite, 0: neither; None: nothing planted for it."""
        if claim.key != "C4":
            return None
        if self.law == "limit":
            return 1
        return -1 if self.slope < 0 else 0

    def study(self, seed: int) -> list[Run]:
        """The runs of one planted study, without logs."""
        rng = np.random.default_rng([seed, 20_222])
        runs = []
        for s in range(self.seeds):
            common = 0.5 * rng.standard_normal()
            for rule in self.rules:
                for lr in RATES:
                    rho = RHO[rule] * math.exp(0.15 * rng.standard_normal() * (rule != REFERENCE))
                    own = math.exp(self.sd * (common + 0.87 * rng.standard_normal()))
                    sharp = own * self._law(lr, rho, rng)
                    final = {"rho": rho, "lambda1_full": sharp, "train_loss": 0.1}
                    name = f"{rule}-lr={lr:g}-s{s}"
                    config = {"lr": lr}
                    arm = f"lr={lr:g}"
                    runs.append(Run(name, arm, rule, s, "finished", config=config, final=final))
        return runs

    def _law(self, lr: float, rho: float, rng: np.random.Generator) -> float:
        limit = 2 / (lr * rho)
        if self.law == "limit":
            return min(limit, self.natural * math.exp(SD_LOG_LAMBDA * rng.standard_normal()))
        if self.law == "eta":
            return 2 / lr
        return self.natural * (limit / self.natural) ** self.slope

    def assess(self, seed: int, resamples: int) -> Assessment:
        """The claims about the study with that seed."""
        arms = {f"lr={lr:g}": {"kind": "rule", "lr": lr} for lr in RATES}
        return assess(
            self.study(seed), self.rules, arm="lr=0.03", arms=arms, resamples=resamples, seed=seed
        )


@dataclass(frozen=True)
class RemedyPlant:
    """Two rules as they are and under two remedies, paired by seed.

    ``lambda_ratio``: λ₁ of the plain rule over the remedy's at matched loss. ``d``: by how much
    the remedy lowers the mean gap, in SDs. ``diverge``: share of its runs that do, those with the
    largest gaps.
    """

    name: str
    lambda_ratio: float = 1.0
    d: float = 0.0
    diverge: float = 0.0
    seeds: int = 30
    shared: float = 0.3
    tails: Literal["normal", "heavy", "skewed"] = "normal"
    rules: tuple[str, ...] = ("rule-a", "rule-b")

    def truth(self, claim: Claim) -> int | None:
        """1: the claim holds, -1: its opposite, 0: neither; None: nothing planted for it."""
        if claim.key not in ("C5 curvature", "C5 gap") or self.diverge:
            return None
        value = math.log(self.lambda_ratio) if claim.key == "C5 curvature" else self.d
        if abs(value) < 1e-12:
            return 0
        return None if abs(value) < RELEVANT[claim.key] - 1e-9 else 1 if value > 0 else -1

    def both(self) -> int:
        """What is true of a remedy as a whole."""
        if self.diverge:
            return 0
        if self.lambda_ratio > 1 and self.d > 0:
            return 1
        return -1 if self.lambda_ratio < 1 and self.d < 0 else 0

    def study(self, seed: int) -> list[Run]:
        """The runs of one planted study."""
        rng = np.random.default_rng([seed, 20_223])
        common = noise(rng, self.tails, (2, self.seeds))
        runs = []
        for rule in self.rules:
            for arm in ("rule", "early", "sam"):
                own = noise(rng, self.tails, (2, self.seeds))
                z = math.sqrt(self.shared) * common + math.sqrt(1 - self.shared) * own
                treated = arm != "rule"
                gap = SD_GAP * (z[0] - self.d * treated)
                sharp = SD_LOG_LAMBDA * z[1] - math.log(self.lambda_ratio) * treated
                lost = np.argsort(gap)[::-1][: round(self.diverge * self.seeds) * treated]
                for s in range(self.seeds):
                    log = curves(
                        rng, stop=0.08, gap=float(gap[s]), accuracy=0.0, log_lambda=float(sharp[s])
                    )
                    status = "diverged" if s in lost else "finished"
                    if s in lost:
                        log = {name: values[:8] for name, values in log.items()}
                    final = {name: float(values[-1]) for name, values in log.items()}
                    runs.append(
                        Run(
                            f"{rule}-{arm}-s{s}", arm, rule, s, status, config={"lr": 0.03},
                            final=final, log=log,
                        )
                    )  # fmt: skip
        return runs

    def assess(self, seed: int, resamples: int) -> Assessment:
        """The claims about the study with that seed."""
        arms: dict[str, dict[str, Any]] = {
            "rule": {"kind": "rule"},
            "early": {"kind": "rule", "lr_factor": 3.0, "lr_fraction": 0.1},
            "sam": {"kind": "rule", "sam_rho": 0.05},
        }
        return assess(self.study(seed), self.rules, arms=arms, resamples=resamples, seed=seed)


ARM_CASES: tuple[EdgePlant | RemedyPlant, ...] = (
    EdgePlant("edge: at the limit"),
    EdgePlant("edge: small steps don't reach it", natural=400.0),
    EdgePlant("edge: λ₁ whatever the limit is", law="power", natural=100.0, sd=0.35),
    EdgePlant("edge: that, widely spread", law="power", natural=100.0, sd=1.0),
    EdgePlant("edge: ρ doesn't count", law="eta"),
    EdgePlant("edge: the opposite", law="power", natural=300.0, slope=-0.7, sd=0.2),
    RemedyPlant("remedies: no effect"),
    RemedyPlant("remedies: no effect, heavy tails", tails="heavy"),
    RemedyPlant("remedies: no effect, 5 seeds", seeds=5),
    RemedyPlant("remedies: both lower", lambda_ratio=3.0, d=1.5),
    RemedyPlant("remedies: curvature alone", lambda_ratio=3.0),
    RemedyPlant("remedies: gap alone", d=1.5),
    RemedyPlant("remedies: both higher", lambda_ratio=1 / 3, d=-1.5),
    RemedyPlant("remedies: survivors alone", lambda_ratio=3.0, diverge=0.3),
)
