"""Synthetic study folders for the report's tests, in the format that the runner writes."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from rtrl_ext.study.records import COLUMNS

KINDS = {
    "rule": "rule",
    "bptt-rho": "bptt-rho",
    "projected": "projected",
    "matched-noise": "matched-noise",
}
VERSIONS = {"rtrl_ext": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"}


def write_study(
    folder: Path,
    *,
    rules: tuple[str, ...] = ("bptt", "eprop", "modprop"),
    arms: tuple[str, ...] = ("rule",),
    seeds: int = 2,
    preset: str = "demo",
    stop: dict[str, float] | None = None,
    gap: dict[str, float] | None = None,
    sharpness: dict[str, float] | None = None,
    diverge: tuple[tuple[str, str, int], ...] = (),
    leave_out: tuple[tuple[str, str, int], ...] = (),
    entries: dict[str, dict[str, Any]] | None = None,
    cures: dict[str, tuple[float, float]] | None = None,
    task: str = "seqmnist",
    without: tuple[str, ...] = (),
) -> Path:
    """Write a whole study; ``stop``, ``gap``, ``sharpness`` are by rule (end loss, added gap,
    factor of λ₁).

    ``entries``: kind and settings by arm. An arm with a step size of its own ends with λ₁ near its
    stability limit. ``cures``: added gap and factor of λ₁ by arm. ``without``: what isn't measured,
    among ``acc`` and ``lambda1`` (then there is sharpness by perturbation at the end).
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {**{a: {"kind": k} for a, k in KINDS.items()}, **(entries or {})}
    config = {
        "task": task,
        "shift_noise": 0.2 if task == "seqmnist" else 0.0,
        "lr": 0.03,
        "l2": 1e-4,
        "leak": 0.5,
        "optimizer": "sgd",
        "momentum": 0.0,
    }
    study = {
        "format": 1, "task": task, "rules": list(rules), "arms": list(arms),
        "arm_settings": {a: known[a] for a in arms}, "seeds": list(range(seeds)),
        "preset": preset, "config": config, "versions": VERSIONS, "hash": "0" * 12,
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(study))
    for seed in range(seeds):
        for rule in rules:
            for arm in arms:
                plain = known[arm].get("kind", "rule") == "rule"
                if (not plain and rule == "bptt") or (arm, rule, seed) in leave_out:
                    continue
                more, factor = (cures or {}).get(arm, (0.0, 1.0))
                write_run(
                    folder, arm, rule, seed, config={**config, **known[arm]},
                    stop=(stop or {}).get(rule, 0.28), gap=(gap or {}).get(rule, 0.0) + more,
                    sharpness=(sharpness or {}).get(rule, 1.0) * factor,
                    diverged=(arm, rule, seed) in diverge, at_edge="lr" in known[arm],
                    without=without,
                )  # fmt: skip
    return folder


def write_run(
    folder: Path, arm: str, rule: str, seed: int, *, config: dict[str, Any], stop: float = 0.28,
    gap: float = 0.0, sharpness: float = 1.0, diverged: bool = False, at_edge: bool = False,
    without: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Write one run: a loss that falls from 2.3 to ``stop``, test measures and λ₁ now and then."""
    rng = np.random.default_rng([seed, sum(map(ord, rule + arm))])
    rho = 1.0 if rule == "bptt" or arm == "bptt-rho" else 0.25
    lr = config["lr"] * (0.25 if arm == "bptt-rho" else 1.0)
    count = 61
    t = np.arange(count) / (count - 1)
    log_loss = math.log(2.3) + (math.log(stop) - math.log(2.3)) * t ** rng.uniform(0.6, 0.8)
    log_loss[1:-1] += 0.015 * rng.standard_normal(count - 2)
    offset = gap + 0.02 * rng.standard_normal()
    tall = sharpness * math.exp(0.3 * rng.standard_normal())
    rows: list[dict[str, Any]] = []
    for k in range(count if not diverged else count // 2):
        loss = math.exp(log_loss[k])
        progress = math.log(2.3) - log_loss[k]
        row: dict[str, Any] = {
            "iteration": 20 * k,
            "train_loss": loss,
            "train_acc": max(0.1, 1 - 0.4 * loss),
        }
        row.update(rho=rho, cosine=0.7, norm_ratio=0.4)
        if k % 5 == 0 or k == count - 1:
            test = loss + 0.06 * progress**2 + offset * min(1.0, progress / 0.65)
            row.update(test_loss=test, test_acc=row["train_acc"] - 0.3 * (test - loss))
            row.update(shift_loss=test + 0.1, shift_acc=row["test_acc"] - 0.05)
        if k in (0, 1, 2, 4, 8, 16, 32) or k % 7 == 0 or k == count - 1:
            row["lambda1"] = (5 + 40 * progress) * tall
            row["lambda1_full"] = 1.3 * row["lambda1"]
        rows.append({k: v for k, v in row.items() if not any(name in k for name in without)})
    last = rows[-1]
    if at_edge:
        last["lambda1_full"] = 2 / (lr * rho) * math.exp(0.1 * rng.standard_normal())
    final: dict[str, Any] = {k: last.get(k) for k in COLUMNS}
    if diverged:
        final = {"iteration": last["iteration"], "rho": rho}
    elif "lambda1" in without:
        sharp = 0.01 * sharpness * math.exp(0.3 * rng.standard_normal())
        final.update(sharpness_mean=sharp, sharpness_stderr=0.001, sharpness_max=2 * sharp)
    else:
        final.update(
            lambda1_l2=last["lambda1"] + 1e-4, lambda1_heldout=0.9 * last["lambda1"],
            lambda1_w2=last["lambda1"] * 250, trace=6 * last["lambda1"], trace_stderr=3.0,
            eta_rho_lambda_half=lr * rho * last["lambda1_full"] / 2, weight_change=2.5,
        )  # fmt: skip
    run_id = f"{rule}-{arm}-s{seed}"
    place = folder / "runs" / run_id
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "log.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    record = {
        "run_id": run_id, "arm": arm, "rule": rule, "seed": seed,
        "status": "diverged" if diverged else "finished",
        "config": {**config, "lr": lr, "base_lr": config["lr"], "kappa": 0.5},
        "versions": VERSIONS, "final": final, "seconds": 12.5,
    }  # fmt: skip
    (place / "record.json").write_text(json.dumps(record))
    return place
