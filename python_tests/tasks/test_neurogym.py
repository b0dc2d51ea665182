"""The adapter against a stand-in with neurogym's interface, and against neurogym where it is."""

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from rtrl_ext import tasks
from rtrl_ext.tasks import Neurogym


class Discrete:
    n = 3


class Trials:
    """What neurogym's TrialEnv shows: ``new_trial`` sets ``ob`` and ``gt``."""

    action_space: Any = Discrete()

    def __init__(self, dt: int = 100, lengths: tuple[int, ...] = (6,)) -> None:
        self.dt, self.lengths = dt, lengths
        self.seed(None)

    def seed(self, seed: int | None) -> list[int | None]:
        self.rng = np.random.RandomState(seed)
        return [seed]

    def new_trial(self, **kwargs: Any) -> dict[str, int]:
        length = self.lengths[self.rng.randint(len(self.lengths))]
        side = self.rng.randint(2)
        self.ob = self.rng.randn(length, 2).astype(np.float32)
        self.ob[0, side] += 5.0
        self.gt = np.zeros(length, dtype=np.int64)
        self.gt[-2:] = side + 1
        return {"side": side}


class Wrapper:
    """A gymnasium wrapper hides everything but ``unwrapped``."""

    def __init__(self, env: Trials) -> None:
        self.unwrapped = env


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    asked: list[tuple[str, dict[str, Any]]] = []

    def make(name: str, **kwargs: Any) -> Wrapper:
        asked.append((name, kwargs))
        return Wrapper(Trials(**kwargs))

    module = types.ModuleType("neurogym")
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "neurogym", module)
    return asked


def test_trials_by_name(package: list[tuple[str, dict[str, Any]]]) -> None:
    task = tasks.make("neurogym:env=DelayMatchSample-v0:dt=20", "train", 3, num_train=10)
    assert package == [("DelayMatchSample-v0", {"dt": 20})]
    assert task.x.shape == (10, 6, 2) and task.target.shape == (10, 6)
    assert task.target.dtype == torch.int64
    assert (task.input_size, task.output_size, task.output_steps) == (2, 3, None)
    assert torch.equal(task.target[:, -1] - 1, task.x[:, 0].argmax(1))
    x, target = next(iter(task.loader(4)))
    assert x.shape == (6, 4, 2) and target.shape == (6, 4)
    assert torch.equal(target[:, 2], task.target[2])
    loss = task.loss_fn(torch.zeros(6, 4, 3), target)
    assert float(loss) == pytest.approx(np.log(3), rel=1e-6)


def test_seed_and_split_decide_the_trials() -> None:
    def x(split: str, seed: int) -> torch.Tensor:
        return Neurogym(split, seed, env=Trials(), num_train=8, num_test=8).x

    assert torch.equal(x("train", 1), x("train", 1))
    every = [x(split, seed) for split in ("train", "test") for seed in (1, 2)]
    assert len({part.numpy().tobytes() for one in every for part in one}) == 32


def test_accuracy_counts_decisions() -> None:
    task = Neurogym(env=Trials(), num_train=5)
    _, target = task.batch(slice(None))
    assert task.metric(torch.nn.functional.one_hot(target, 3).float(), target) == 1.0
    fixating = torch.tensor([1.0, 0.0, 0.0]).expand(6, 5, 3)
    assert task.metric(fixating, target) == 0.0
    assert task.metric(fixating, torch.zeros_like(target)) == 1.0


def test_trials_of_different_lengths_need_seq_len() -> None:
    env = Trials(lengths=(4, 7))
    with pytest.raises(ValueError, match="seq_len: got None, but trials have 4 to 7 steps"):
        Neurogym(env=env, num_train=20)
    task = Neurogym(env=env, num_train=3, seq_len=20)
    assert task.x.shape == (3, 20, 2)
    env.seed(int(np.random.SeedSequence([0, 0]).generate_state(1)[0]))
    shown: list[np.ndarray] = []
    while sum(map(len, shown)) < 20:
        env.new_trial()
        shown.append(env.ob)
    assert np.array_equal(task.x[0].numpy(), np.concatenate(shown)[:20])


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neurogym", None)
    with pytest.raises(ImportError, match="pip install neurogym"):
        Neurogym(env="GoNogo-v0")
    with pytest.raises(TypeError, match=r"env: got int, which has no new_trial\(\)"):
        Neurogym(env=3)
    with pytest.raises(TypeError, match="dt: an argument of the environment"):
        Neurogym(env=Trials(), dt=20)
    env = Trials()
    env.action_space = object()
    with pytest.raises(ValueError, match="env: its actions are not discrete"):
        Neurogym(env=env)
    with pytest.raises(ValueError, match="num_test: got 0"):
        Neurogym(env=Trials(), num_test=0)
    with pytest.raises(ValueError, match=r"model_output: got shape \(5, 4, 3\)"):
        Neurogym(env=Trials(), num_train=4).loss_fn(
            torch.zeros(5, 4, 3), torch.zeros(6, 4, dtype=torch.int64)
        )


def test_the_real_package() -> None:
    pytest.importorskip("neurogym")
    task = Neurogym(env="GoNogo-v0", num_train=4, seq_len=30)
    assert task.x.shape[:2] == (4, 30) and torch.isfinite(task.x).all()
    assert torch.equal(task.x, Neurogym(env="GoNogo-v0", num_train=4, seq_len=30).x)
