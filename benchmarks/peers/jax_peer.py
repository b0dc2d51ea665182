"""Starts and drives the JAX worker processes, one per thread count."""

from __future__ import annotations

import atexit
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from ..problem import Case

ROOT = pathlib.Path(__file__).resolve().parents[2]


class JaxError(RuntimeError):
    """The worker refused or died."""


def default_python() -> str:
    """The interpreter with JAX: RTRL_BENCH_JAX_PYTHON, or this one."""
    return os.environ.get("RTRL_BENCH_JAX_PYTHON", sys.executable)


class JaxWorker:
    """A process whose XLA uses `threads` threads (checked by its CPU time)."""

    def __init__(self, python: str, threads: int) -> None:
        env = dict(os.environ)
        env["PYTHONPATH"] = str(ROOT)
        env["JAX_PLATFORMS"] = "cpu"
        env["NPROC"] = str(threads)
        env["OMP_NUM_THREADS"] = str(threads)
        if threads == 1:
            flags = env.get("XLA_FLAGS", "")
            env["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        cpus = sorted(os.sched_getaffinity(0))[-threads:]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.jax_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
            cwd=ROOT,
        )
        os.sched_setaffinity(self._process.pid, cpus)
        atexit.register(self.close)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request; JaxError with the reason if it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            raise JaxError((self._log.read().strip().splitlines() or ["worker died"])[-1])
        reply = json.loads(line)
        if "error" in reply:
            raise JaxError(reply["error"])
        return reply

    def close(self) -> None:
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()


class JaxPeer:
    """All JAX contestants of a run; `absent` says why there are none."""

    def __init__(self, python: str | None = None) -> None:
        self._python = python or default_python()
        self._workers: dict[int, JaxWorker] = {}
        self._next = 0
        self.versions: dict[str, str | None] = {}
        self.absent: str | None = None
        try:
            self.versions = self._worker(1).ask(op="versions")
        except (JaxError, OSError) as error:
            self.absent = str(error)

    def _worker(self, threads: int) -> JaxWorker:
        if threads not in self._workers:
            self._workers[threads] = JaxWorker(self._python, threads)
        return self._workers[threads]

    def build(
        self, kind: str, case: Case, threads: list[int], **options: Any
    ) -> tuple[Any, list[np.ndarray], float]:
        """(remote for a Contestant, result arrays, seconds of the first call)."""
        self._next += 1
        ident = self._next
        arrays: list[np.ndarray] = []
        first = 0.0
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.npz")
            for th in threads:
                reply = self._worker(th).ask(
                    op="build", id=ident, kind=kind, case=case.as_dict(), options=options, path=path
                )
                first = reply["first_call_s"]
            with np.load(path) as data:
                arrays = [data[name] for name in data.files]

        def remote(th: int, inner: int) -> tuple[float, float]:
            reply = self._worker(th).ask(op="time", id=ident, inner=inner)
            return reply["wall"], reply["cpu"]

        return remote, arrays, first

    def drop(self) -> None:
        """Frees what the workers hold."""
        for worker in self._workers.values():
            worker.ask(op="drop")

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
