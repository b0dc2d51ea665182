"""What a run was asked to do, and the peers it found."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .harness import Contestant
from .peers.jax_peer import JaxError, JaxPeer
from .problem import Case
from .results import Row, print_tables

#: A result of a peer further from ours than this (relative) is reported, not timed.
TOLERANCE = 1e-3


@dataclass
class Settings:
    """Options shared by all suites."""

    threads: list[int] = field(default_factory=lambda: [1, 2])
    columns: list[str] = field(default_factory=lambda: ["64", "128", "256", "batch"])
    rounds: int = 15
    target: float = 0.02
    budget: float = 2.0
    peers: str = "all"
    compiled: bool = True
    jax_python: str | None = None
    quick: bool = False
    notes: list[str] = field(default_factory=list)
    _jax: JaxPeer | None = None

    def note(self, text: str) -> None:
        """Something the reader of the tables must know; printed at once and kept in the JSON."""
        if text not in self.notes:
            self.notes.append(text)
            print(f"note: {text}", file=sys.stderr)

    def done(self, rows: Sequence[Row]) -> None:
        """Prints the rows of one problem as soon as they are there."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        print_tables(rows)
        sys.stdout.flush()

    def progress(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    @property
    def jax(self) -> JaxPeer | None:
        """The JAX workers, started on first use; None (with a note) where JAX is absent."""
        if self.peers == "none":
            return None
        if self._jax is None:
            self._jax = JaxPeer(self.jax_python)
            if self._jax.absent:
                self.note(f"absent: JAX ({self._jax.absent})")
        return None if self._jax.absent else self._jax

    def measure_options(self) -> dict[str, Any]:
        return {
            "threads": self.threads,
            "rounds": self.rounds,
            "target": self.target,
            "budget": self.budget,
            "progress": self.progress,
        }

    def has(self, package: str) -> bool:
        """Whether a peer's package is there; a note if not."""
        try:
            importlib.import_module(package)
        except ImportError as error:
            self.note(f"absent: {package} ({error})")
            return False
        return True

    def add_checked(
        self,
        contestants: list[Contestant],
        name: str,
        make: Callable[[], Callable[[], Any]],
        compare: Callable[[Any], float] | None,
        **options: Any,
    ) -> None:
        """Makes a contestant, runs it once and checks its result against ours before timing."""
        try:
            call = make()
            result = call()
        except Exception as error:  # a peer that cannot run is a finding, not a crash
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            self.note(f"absent: {name} ({type(error).__name__}: {reason})")
            return
        difference = None if compare is None else compare(result)
        if difference is not None and not difference <= TOLERANCE:
            self.note(f"wrong: {name} differs from ours by {difference:.2g}; not timed")
            return
        info = dict(options.pop("info", {}))  # with what `compare` may have added
        if difference is not None:
            info["difference"] = difference
        contestants.append(Contestant(name, call, info=info, **options))

    def add_jax(
        self,
        contestants: list[Contestant],
        name: str,
        kind: str,
        case: Case,
        compare: Callable[[Sequence[Any]], float],
        *,
        options: dict[str, Any],
        flops: float | None,
    ) -> None:
        """The same for a contestant in the JAX worker."""
        jax = self.jax
        if jax is None:
            return
        try:
            remote, arrays, first = jax.build(kind, case, self.threads, **options)
        except JaxError as error:
            self.note(f"absent: {name} ({error})")
            return
        difference = compare(arrays)
        if not difference <= TOLERANCE:
            self.note(f"wrong: {name} differs from ours by {difference:.2g}; not timed")
            return
        info = {"difference": difference, "compile_s": round(first, 2)}
        contestants.append(Contestant(name, remote=remote, flops=flops, info=info))
