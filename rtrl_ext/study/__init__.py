"""Studies: many training runs from one configuration, their records, and what they say.

A study is a folder: ``study.json`` (its configuration), ``runs/<run_id>/record.json`` (one per
finished run) and ``runs/<run_id>/log.csv`` (one row per evaluation).
"""

from .arms import Arm, StudyConfig, demo, parse_arms
from .config import LEVELS, PRESETS, RunConfig, Settings, settings
from .folder import load_study, open_study, status
from .runner import StudyError, run_study
from .training import Training, perform

__all__ = [
    "LEVELS",
    "PRESETS",
    "Arm",
    "RunConfig",
    "Settings",
    "StudyConfig",
    "StudyError",
    "Training",
    "demo",
    "load_study",
    "open_study",
    "parse_arms",
    "perform",
    "run_study",
    "settings",
    "status",
]
