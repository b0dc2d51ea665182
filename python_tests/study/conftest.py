import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtrl_ext.study import report
from rtrl_ext.study.arms import StudyConfig

SMALL: dict[str, Any] = {
    "train_size": 60, "test_size": 40, "hidden_size": 9, "batch_size": 20, "iterations": 40,
    "eval_every": 5, "test_every": 10, "alignment_every": 2, "curvature_batch": 20,
    "curvature_products": 6, "final_products": 6, "trace_products": 2, "stop_loss": None,
}  # fmt: skip


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of IDX files whose classes are told apart by the bright row."""
    folder = tmp_path_factory.mktemp("digits")
    rng = np.random.default_rng(0)
    for part, count in (("train", 120), ("t10k", 80)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 2 * labels + 5] += 190
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


@pytest.fixture
def small(digits: Path) -> dict[str, Any]:
    """Settings of runs that take a fraction of a second."""
    return {**SMALL, "data": str(digits)}


@pytest.fixture
def make(small: dict[str, Any]) -> Callable[..., StudyConfig]:
    """Small studies: ``make(rules, seeds=1, arms="rule", **settings)``."""

    def build(rules: list[str], **options: Any) -> StudyConfig:
        return StudyConfig.make(rules, **{**small, **options})

    return build


def _without_figures() -> Iterator[None]:
    """Reports without figures, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", lambda study, found: {})
        yield


no_figures = pytest.fixture(_without_figures)
no_figures_in_module = pytest.fixture(_without_figures, scope="module")
