"""Configuration files: what they say, what is refused, and that they come back as they were."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtrl_ext import cli
from rtrl_ext._commands.options import _NONE
from rtrl_ext.study.arms import Arm, StudyConfig
from rtrl_ext.study.config import Settings, settings
from rtrl_ext.study.folder import open_study
from rtrl_ext.study.plan import READY, Plan, dump, read_plan
from rtrl_ext.study.tomlfile import NONE_WORDS, ConfigError, none_word

Command = Callable[..., tuple[int, str, str]]

WHOLE = """
task = "delayed-match:delay=300"
preset = "quick"
rules = ["bptt", "eprop", "modprop:mu=0.5"]
seeds = [3, 5]
other_iterations = 70

[settings]
lr = 1
iterations = 60
stop_loss = "none"
clip_norm = 2.5

[[arm]]
name = "rule"

[[arm]]
name = "slow"
kind = "rule"
lr = 0.01
train_size = "all"
rank = 3
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``(exit code, standard output, standard error)`` of ``rtrl-ext study ...``."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(["study", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, error = capsys.readouterr()
        return code, out, error

    return call


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    study = read_plan(str(written(tmp_path, WHOLE))).study()
    assert study.rules == ("bptt", "eprop", "modprop:mu=0.5")
    assert study.seeds == (3, 5) and study.other_iterations == 70
    one = study.settings
    assert (one.task, one.lr, one.iterations) == ("delayed-match:delay=300", 1.0, 60)
    assert one.stop_loss is None and one.clip_norm == 2.5
    assert one.hidden_size == 100  # the preset's
    slow = {"lr": 0.01, "train_size": None, "rank": 3}
    assert study.arms == (Arm("rule"), Arm("slow", "rule", slow))
    assert [r.settings.iterations for r in study.runs()[:3:2]] == [60, 70]


@pytest.mark.parametrize(
    "options",
    [
        {"rules": ["bptt", "mdgl"], "arms": "core", "seeds": 3},
        {"rules": ["eprop"], "preset": "paper"},
        {"rules": ["bptt", "tbptt:k=5"], "preset": "paper", "task": "delayed-match", "rank": 4},
        {"rules": ["eprop"], "arms": "remedies", "preset": "demo", "train_size": None},
        {"rules": ["mdgl"], "task": "delayed-xor", "preset": "demo", "leak": 0.1 + 0.2},
        {"rules": ["bptt"], "task": "evidence:dt=5", "stop_loss": None, "clip_norm": 0.5},
        {"rules": ["bptt"], "data": "/some/where", "arms": "phase"},
    ],
)
def test_configurations_come_back_as_they_were(tmp_path: Path, options: dict[str, Any]) -> None:
    study = StudyConfig.make(options.pop("rules"), **options)
    again = read_plan(str(written(tmp_path, dump(study)))).study()
    assert again == study and again.to_dict() == study.to_dict()
    assert [r.run_id for r in again.runs()] == [r.run_id for r in study.runs()]
    odd = dataclasses.replace(study, seeds=(2, 7))
    assert read_plan(str(written(tmp_path, dump(odd)))).study() == odd


@pytest.mark.parametrize("name", READY)
def test_ready_configurations(name: str, command: Command, tmp_path: Path) -> None:
    study = read_plan(name).study()
    assert study.preset in (name, "quick") and "bptt" in study.rules
    code, out, _ = command("run", "--config", name, "--print-config")
    assert code == 0 and read_plan(str(written(tmp_path, out))).study() == study
    if name == "phase":
        assert {r.settings.lr for r in study.runs()} == {0.003, 0.01, 0.03, 0.1}


def test_words_for_none_are_the_command_lines() -> None:
    hints = {f.name: str(f.type) for f in dataclasses.fields(Settings)}
    nullable = {name for name, kind in hints.items() if "None" in kind}
    assert set(NONE_WORDS) < nullable == {*_NONE, "data"}
    assert all(none_word(name) == word for name, word in _NONE.items())


def test_options_go_before_the_file(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE)
    code, out, _ = command(
        "run", "--config", path, "--print-config", "--lr=0.5", "--iterations=9", "--seeds=2",
        "--rules=bptt", "--arms=rule,projected", "--paper", "--task=delayed-match",
    )  # fmt: skip
    study = read_plan(str(written(tmp_path, out))).study()
    assert code == 0 and study.rules == ("bptt",) and study.seeds == (0, 1)
    assert [a.name for a in study.arms] == ["rule", "projected"]
    assert (study.preset, study.settings.task) == ("paper", "delayed-match:dt=100")
    assert (study.settings.lr, study.settings.iterations) == (0.5, 9)
    assert study.other_iterations is None and study.settings.clip_norm == 2.5
    assert study.settings.hidden_size == 300


def test_data_is_found_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    path = written(tmp_path / "a", 'rules = "bptt"\n[settings]\ndata = "digits"\n')
    monkeypatch.chdir(tmp_path)
    assert read_plan(str(path)).study().settings.data == str(tmp_path / "a" / "digits")


def test_preset_full() -> None:
    digits = Plan(preset="full").study()
    assert digits.settings == settings("quick") and digits.seeds == tuple(range(30))
    assert digits.rules == ("bptt", "eprop", "snap1", "mdgl", "modprop")
    assert [a.name for a in digits.arms] == ["rule", "bptt-rho"]
    assert digits.other_iterations is None
    for task in ("pattern", "delayed-xor"):
        other = Plan(preset="full", task=task).study()
        assert other.settings == settings("quick", task=task) and len(other.seeds) == 20
    own = Plan(preset="full", rules=["bptt"], seeds=[1], arms="rule").study()
    assert (own.rules, own.seeds, len(own.arms)) == (("bptt",), (1,), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('ruls = "bptt"', "unknown key 'ruls'; did you mean 'rules'? (line 1)"),
        ("lr = 0.1", "unknown key 'lr'; settings stand under [settings] (line 1)"),
        ("[settings]\nlrr = 1", "unknown setting 'lrr'; did you mean 'lr'? (line 2)"),
        ("[setings]\nlr = 1", "unknown key 'setings'; did you mean 'settings'? (line 1)"),
        ("settings = 3", "settings: got 3, expected a table (line 1)"),
        ('[settings]\nlr = "fast"', "lr: got 'fast', expected a number (line 2)"),
        ("[settings]\nlr = true", "lr: got True, expected a number (line 2)"),
        ("[settings]\niterations = 1e3", "iterations: got 1000.0, expected an integer (line 2)"),
        ("[settings]\nform = 3", "form: got 3, expected a string (line 2)"),
        ("[settings]\ndata = 3", 'data: got 3, expected a string or "none" (line 2)'),
        ('[settings]\nrank = "none"', 'expected an integer or "full" (line 2)'),
        ("[settings]\nlr = 1\nlr = 2", "is not TOML: Cannot overwrite a value"),
        ('[settings]\ntask = "pattern"', "task stands above [settings] (line 2)"),
        ("task = 1", "task: got 1, expected a string (line 1)"),
        ('task = "cifar"', "task: got 'cifar', expected one of seqmnist"),
        ('task = "pattern:speed=2"', "pattern has no option 'speed'"),
        ('preset = "qick"', "preset: got 'qick'; did you mean 'quick'? (line 1)"),
        ("preset = 1", "preset: got 1, expected a string (line 1)"),
        ("rules = 3", "rules: got 3, expected a string or a list of strings (line 1)"),
        ("rules = []", "rules: got [], expected at least one name (line 1)"),
        ('rules = ["bptt", "epropp"]', "unknown rule 'epropp'"),
        ('rules = ["eprop", "rflo"]', "rules: 'eprop' is named twice (line 1)"),
        ("seeds = 0", "seeds: got 0, expected their number, or a list of them, each once"),
        ("seeds = [1, 1]", "seeds: got [1, 1], expected their number"),
        ("seeds = true", "seeds: got True, expected their number"),
        ("other_iterations = 0", "other_iterations: got 0, expected an integer above 0"),
        ('arms = "remedy"', "arms: got 'remedy', expected 'core'"),
        ('arms = ["rule", 2]', "arms: got ['rule', 2], expected a string or a list"),
        ('arms = "core"\n[[arm]]\nname = "rule"', "arms and [[arm]] are both there"),
        ('arms = "bptt-rho"', "arms: 'bptt-rho' takes its rate from the arm 'rule'"),
        ("arm = 3", "expected tables [[arm]], each with a name"),
        ("[[arm]]\nlr = 1", "an [[arm]] has no name (line 1)"),
        ('[[arm]]\nname = "a"\n\n[[arm]]\nname = "b"\nlrr = 2', "'b': unknown setting 'lrr'; did "),
        ('[[arm]]\nname = "a"\n\n[[arm]]\nname = "b"\nlr = -2', "'b': lr: got -2, expected"),
        ('[[arm]]\nname = "b"\nkind = "rul"', "arm 'b': got kind 'rul', expected one of rule"),
        ('[[arm]]\nname = "b"\n[[arm]]\nname = "b"', "the arm 'b' is named twice (line 4)"),
        ('[settings]\nmomentum = 0.9\noptimizer = "adam"', "momentum: got 0.9 with adam"),
        ('[settings]\ncell = "alif"', "curvature: got 'lanczos' with spiking units, expected none"),
        ("[settings]\ntest_every = 30", "test_every: got 30, expected a multiple of eval_every"),
        ("rules = [", "is not TOML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(command: Command, tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    rules = [] if "rules" in text else ["--rules=bptt,eprop"]
    code, out, error = command("run", "--config", path, "--out", tmp_path / "s", *rules)
    assert (code, out) == (2, ""), error
    assert error.startswith(f"rtrl-ext: error: --config: {path}")
    assert message in error and len(error.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["study.toml"]


def test_options_are_not_blamed_on_the_file(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, "rules = 'bptt'\n[settings]\nlr = 0.1\n")
    for option, message in (
        ("--lr=-1", "--lr: got -1.0, expected a finite"),
        ("--arms=remedy", "--arms: got 'remedy'"),
        ("--rules=bppt", "unknown rule 'bppt'"),
    ):
        code, _, error = command("run", "--config", path, "--out", tmp_path / "s", option)
        assert code == 2 and message in error and str(path) not in error


def test_data_that_do_not_suffice_are_told_with_their_line(
    command: Command, tmp_path: Path, digits: Path
) -> None:
    text = f"rules = 'bptt'\n[settings]\ndata = '{digits}'\ntrain_size = 5000\n"
    path = written(tmp_path, text)
    code, _, error = command("run", "--config", path, "--out", tmp_path / "s")
    assert (
        code == 2
        and f"{path}: train_size: got 5000, expected 1 to 120, the" in error
        and "(line 4)" in error
    )
    code, _, error = command("run", "--config", path, "--out", tmp_path / "s", "--train-size=999")
    assert code == 2 and "--train-size: got 999, expected 1 to 120" in error
    assert not (tmp_path / "s").exists()


def test_files_that_are_not_there(command: Command, tmp_path: Path) -> None:
    code, _, error = command("run", "--config", tmp_path / "no.toml", "--out", tmp_path / "s")
    assert code == 2 and f"--config: cannot read {tmp_path}/no.toml: No such file" in error
    code, _, error = command("run", "--config", "ful", "--out", tmp_path / "s")
    assert code == 2 and "got 'ful', expected a .toml file or quick, full" in error
    assert "did you mean 'full'?" in error
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    code, _, error = command("run", "--config", tmp_path / "b.toml", "--out", tmp_path / "s")
    assert code == 2 and "b.toml is not TOML" in error
    code, _, error = command("run", "--config", tmp_path, "--out", tmp_path / "s")
    assert code == 2 and "Is a directory" in error
    with pytest.raises(ConfigError, match="cannot read"):
        read_plan(str(tmp_path / "no.toml"))
    assert not (tmp_path / "s").exists()


def test_configuration_of_a_folder(
    command: Command, tmp_path: Path, make: Callable[..., StudyConfig]
) -> None:
    study = make(["bptt", "eprop"], seeds=2, arms="core")
    open_study(tmp_path / "s", study)
    code, out, _ = command("config", tmp_path / "s")
    assert code == 0 and read_plan(str(written(tmp_path, out))).study() == study
    code, out, error = command("config", tmp_path)
    assert (code, out) == (1, "") and "holds no study" in error
