from pathlib import Path

import pytest
import torch

from rtrl_ext import tasks

pytest.importorskip("matplotlib")
from rtrl_ext.tasks import picture

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_pictures_are_written_and_shown_in_the_docs(tmp_path: Path) -> None:
    assert picture.main(["--out", str(tmp_path / "new")]) == 0
    page = (DOCS / "tasks.md").read_text(encoding="utf-8")
    for path in sorted((tmp_path / "new").glob("*.png")):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"figures/{path.name}" in page and (DOCS / "figures" / path.name).exists()
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_what_is_drawn_is_the_sequence() -> None:
    import matplotlib

    matplotlib.use("Agg")
    task = tasks.DelayedXOR(dt=10.0)
    upper, lower = picture.draw(task, 3).axes
    for k, line in enumerate(upper.get_lines()):
        assert torch.equal(torch.tensor(line.get_ydata()).float(), task.x[3, :, k])
    assert lower.texts[0].get_text() == f"class {int(task.target[3])} "
    spikes = tasks.EvidenceAccumulation(dt=10.0, num_train=2)
    marks = picture.draw(spikes, 1).axes[0].get_lines()[0]
    assert len(marks.get_xdata()) == int(spikes.x[1].sum())
    wave = tasks.PatternGeneration(num_train=2)
    drawn = picture.draw(wave, 0).axes[1].get_lines()[0].get_ydata()
    assert torch.equal(torch.tensor(drawn).float(), wave.target[0, :, 0])
    with pytest.raises(IndexError, match="index: got 128, expected 0 to 127"):
        picture.draw(task, 128)
