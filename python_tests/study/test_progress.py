import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.progress import Bars, Display, describe, label, make_display
from rtrl_ext.study.records import COLUMNS, RUNS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal_with_rich_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    assert type(make_display(io.StringIO())) is Display
    assert type(make_display(Terminal())) is Bars
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert type(make_display(Terminal())) is Display


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_study_is_shown_from_beginning_to_end(
    tmp_path: Path, make: Callable[..., StudyConfig], stream: type[io.StringIO]
) -> None:
    if stream is Terminal:
        pytest.importorskip("rich")
    out = stream()
    first, second, third = make(["bptt"], seeds=3).runs()
    log = tmp_path / RUNS / second.run_id / "log.csv"
    log.parent.mkdir(parents=True)
    log.write_text(",".join(COLUMNS) + "\n20,1.5,0.5,,,,,,,,,\n")
    record = {"final": {"iteration": 40, "train_loss": 0.25, "lambda1": None}, "seconds": 3.0}
    with make_display(out) as display:
        display.begin(tmp_path, [first, second, third], [first])
        display.start(second)
        display.start(third)
        display.poll()
        display.stop(third, "busy", None)
        display.stop(second, "finished", record)
    text = out.getvalue()
    assert "3 runs, 1 of them done before" in text
    ended = "[2/3] bptt rule seed 1: finished at iteration 40, train loss 0.25, 3.0 s"
    assert ended in text and "seed 2: busy" not in text


def test_words_for_an_end(make: Callable[..., StudyConfig]) -> None:
    assert label(make(["rflo"]).runs()[0]) == "eprop rule seed 0"
    assert describe("failed", {"error": "OSError: full"}) == "failed: OSError: full"
    final = {"iteration": 3, "train_loss": None, "lambda1": None}
    text = describe("diverged", {"final": final, "seconds": 1.0})
    assert text == "diverged at iteration 3, 1.0 s"
