"""A paragraph of methods from a study's configuration, to be pasted into a paper."""

import math
from typing import Any

from .claims import Assessment
from .load import RecordedStudy
from .roles import words
from .stats import RESAMPLES
from .tables import arm_entry, rule_label

TASKS = {
    "seqmnist": "handwritten digits read row by row",
    "delayed-match": "delayed match to sample",
    "pattern": "generation of patterns from frozen noise",
    "delayed-xor": "delayed exclusive or",
    "evidence": "accumulation of evidence",
}


def methods(study: RecordedStudy, found: Assessment, versions: list[tuple[str, str]]) -> str:
    """Plain text: task, network, training, rules, arms and seeds, measures, statistics, versions.

    What the configuration does not say is left out.
    """
    config = dict(study.settings.get("config") or {})
    parts = [_task(study, config), _network(config), _training(config), _rules(study)]
    parts += [_measures(config, found), _statistics(found)]
    if versions:
        said = ", ".join(f"{name} {version}" for name, version in versions)
        parts.append(f"Software: {said}.")
    return " ".join(part for part in parts if part)


def _task(study: RecordedStudy, config: dict[str, Any]) -> str:
    task = str(study.settings.get("task", "unknown"))
    name = TASKS.get(task.partition(":")[0])
    text = f"Networks were trained on the task {task}" + (f" ({name})" if name else "")
    sizes = [config.get("train_size"), config.get("test_size")]
    if all(isinstance(v, int) for v in sizes):
        text += f", with {sizes[0]:,} training and {sizes[1]:,} test sequences"
    return text + "."


def _network(config: dict[str, Any]) -> str:
    units = config.get("hidden_size")
    if units is None:
        return ""
    if config.get("cell") == "alif":
        return (
            f"The network had {units} spiking units (leaky integrate-and-fire, half of them with "
            f"an adaptive threshold; membrane time constant {config.get('tau_v'):g} ms, adaptation "
            f"{config.get('tau_a'):g} ms, beta {config.get('beta'):g})."
        )
    text = f"The network had {units} leaky units ({config.get('nonlinearity', 'relu')}"
    if "leak" in config:
        text += f", leak kappa = {config['leak']:.4g}"
    text += f", {config['form']} form)" if "form" in config else ")"
    if config.get("dale"):
        text += f" under Dale's law ({100 * config['dale']:g} % excitatory)"
    return text + "."


def _training(config: dict[str, Any]) -> str:
    if "lr" not in config:
        return ""
    name = {"sgd": "stochastic gradient descent", "adam": "Adam"}.get(
        str(config.get("optimizer", "sgd")), str(config.get("optimizer"))
    )
    text = f"Training used {name} at a step size eta = {config['lr']:g}"
    if config.get("momentum"):
        text += f" with momentum {config['momentum']:g}"
    if "batch_size" in config:
        text += f", batches of {config['batch_size']}"
    if config.get("l2"):
        text += f", an L2 penalty of {config['l2']:g} times half the squared norm of the parameters"
    if "iterations" in config:
        text += f", for at most {config['iterations']:,} iterations"
    if config.get("stop_loss") is not None:
        text += f" or until the training loss was {config['stop_loss']:g}"
    return text + "."


def _rules(study: RecordedStudy) -> str:
    seeds = len(study.settings["seeds"])
    rules = ", ".join(rule_label(rule) for rule in study.rules)
    text = (
        f"Learning rules: {rules}; {seeds} seed{'s' * (seeds != 1)} each, which fix "
        "initialisation, data split and batch order, the same for every rule."
    )
    others = [a for a in study.arms if a != study.main_arm]
    if others:
        said = "; ".join(words(arm_entry(study, arm), "the rule", arm) for arm in others)
        text += f" Further arms: {said}."
    lost = sum(run.status == "diverged" for run in study.runs)
    text += f" {len(study.runs)} runs are recorded"
    text += f", of which {lost} diverged." if lost else ", none diverged."
    if study.missing:
        text += f" {len(study.missing)} runs are missing."
    return text


def _measures(config: dict[str, Any], found: Assessment) -> str:
    text = "The generalization gap is test minus training loss (and training minus test accuracy). "
    if found.curvature != "lambda1":
        text += (
            "Spiking units have no second derivatives; curvature is the mean rise of the training "
            "loss under random noise of 1 % on the weights, at the end of training. "
        )
    else:
        batch = config.get("curvature_batch")
        size = f" on {batch} training sequences" if batch is not None else ""
        way = "power iteration" if config.get("curvature") == "power" else "Lanczos iteration"
        text += (
            f"Curvature is the leading eigenvalue lambda_1 of the Hessian of the true training "
            f"loss (never of the surrogate) over the recurrent matrix{size}, by {way}. "
        )
    if found.level is None:
        return text + "No level of the training loss was common to the rules."
    return text + (
        f"Rules were compared where the full training loss first fell to {found.level:g}, the "
        "lowest level that at least 90 % of the runs of every rule reached; runs that did not are "
        "counted as censored."
    )


def _statistics(found: Assessment) -> str:
    keys = {c.key for c in found.claims if math.isfinite(c.estimate.p)}
    known = (
        ("C1 mean", "means by Welch's test, checked by permutation"),
        ("C1 variance", "variances by the Brown-Forsythe test"),
        ("C2", "correlations with log curvature by Fisher's z"),
        ("C3", "curvature paired by seed by the t test of log ratios, checked by permutation"),
        ("C4", "the slope of log lambda_1 on log 2/(eta rho) by regression, checked by a jackknife "
         "over seeds"),
        ("C5 curvature", "remedies paired by seed by t tests, checked by permutation"),
    )  # fmt: skip
    said = "; ".join(text for key, text in known if key in keys)
    if not said:
        return ""
    return (
        f"Tests: {said}. Intervals are 95 % bootstrap intervals (BCa, {RESAMPLES:,} resamples; "
        "over seeds where runs share them); p-values were adjusted by Holm's method over all tests."
    )
