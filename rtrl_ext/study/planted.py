"""How often the verdicts of `claims` are right, measured on studies with planted effects.

The cases are those of `planted_rules` (C1 to C3) and `planted_arms` (C4 and C5).

``python -m rtrl_ext.study.planted --studies 200`` prints the rates for every case.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from .claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Assessment
from .planted_arms import ARM_CASES, EdgePlant, RemedyPlant
from .planted_rules import CASES as RULE_CASES
from .planted_rules import Plant, planted_study

__all__ = ["CASES", "Plant", "Rates", "main", "measure", "planted_study"]

Case = Plant | EdgePlant | RemedyPlant
CASES: tuple[Case, ...] = (*RULE_CASES, *ARM_CASES)


@dataclass
class Rates:
    """How the verdicts of one case came out; counts are of claims over all its studies.

    ``false_any`` counts studies with at least one claim "supported" where nothing was planted
    for it.
    """

    case: str
    studies: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    planted: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    false_any: int = 0
    overall: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, plant: Case, assessment: Assessment) -> None:
        """Score one study."""
        self.studies += 1
        any_false = False
        scored = [
            (f"C2 {c.subject}" if c.key == "C2" else c.key, c.verdict, plant.truth(c))
            for c in assessment.claims
        ]
        if isinstance(plant, RemedyPlant):  # the verdict on both of its claims together
            scored += [("C5", remedy.verdict, plant.both()) for remedy in assessment.remedies]
        for name, verdict, truth in scored:
            if truth is None:
                continue
            if truth == 0:
                self.empty[name] += 1
                self.false[name] += verdict == SUPPORTED
                any_false |= verdict == SUPPORTED
                continue
            self.planted[name] += 1
            correct, opposite = (SUPPORTED, NOT_SUPPORTED)[:: 1 if truth > 0 else -1]
            self.right[name] += verdict == correct
            self.wrong[name] += verdict == opposite
        self.false_any += any_false
        for key, (verdict, _) in assessment.overall.items():
            self.overall[key, verdict.split(" (")[0]] += 1

    def wrong_rate(self) -> float:
        """Share of planted claims with the opposite verdict, of the worst kind of claim."""
        return max((self.wrong[k] / n for k, n in self.planted.items()), default=0.0)

    def right_rate(self, name: str) -> float:
        """Share of planted claims of a kind that were decided rightly."""
        return self.right[name] / self.planted[name] if self.planted[name] else math.nan

    def false_rate(self) -> float:
        """Share of claims without an effect called "supported", of the worst kind of claim."""
        return max((self.false[k] / n for k, n in self.empty.items()), default=0.0)

    def family_rate(self) -> float:
        """Share of studies with any such claim."""
        return self.false_any / self.studies if self.studies else math.nan

    def overall_rate(self, key: str, verdict: str) -> float:
        """Share of studies in which the claim as a whole had that verdict."""
        return self.overall[key, verdict] / self.studies

    def lines(self) -> Iterator[str]:
        """The rates in words."""
        yield f"{self.case} ({self.studies} studies)"
        for name in sorted(self.planted):
            n = self.planted[name]
            yield (
                f"    planted  {name:<16} right {self.right[name] / n:6.1%}   wrong way "
                f"{self.wrong[name] / n:6.1%}   undecided "
                f"{1 - (self.right[name] + self.wrong[name]) / n:6.1%}"
            )
        for name in sorted(self.empty):
            yield f"    nothing  {name:<16} supported {self.false[name] / self.empty[name]:6.1%}"
        if self.empty:
            yield f"    nothing  any             supported {self.family_rate():6.1%} of the studies"


def measure(plant: Case, studies: int, *, resamples: int = 999, first: int = 0) -> Rates:
    """The rates of a case over ``studies`` planted studies with seeds ``first, first + 1, ...``."""
    rates = Rates(plant.name)
    for seed in range(first, first + studies):
        rates.add(plant, plant.assess(seed, resamples))
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rates of every case."""
    parser = argparse.ArgumentParser(
        prog="python -m rtrl_ext.study.planted", description=main.__doc__
    )
    parser.add_argument("--studies", type=int, default=100, help="studies a case (default 100)")
    parser.add_argument(
        "--resamples", type=int, default=999, help="bootstrap samples (default 999)"
    )
    parser.add_argument("--seeds", type=int, help="seeds a rule, for every case")
    options = parser.parse_args(arguments)
    for name, least in (("studies", 1), ("resamples", 1), ("seeds", 2)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name}: got {value}, expected at least {least}")
    began = time.perf_counter()
    for case in CASES:
        plant: Case = case if options.seeds is None else replace(case, seeds=options.seeds)
        for line in measure(plant, options.studies, resamples=options.resamples).lines():
            print(line, flush=True)
    print(f"{time.perf_counter() - began:.0f} s; wrong way counts {UNDECIDED!r} as right")


if __name__ == "__main__":
    main()
