import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rtrl_ext import tasks
from rtrl_ext.tasks import (
    DelayedMatchToSample,
    DelayedXOR,
    EvidenceAccumulation,
    PatternGeneration,
    Task,
)

GENERATED = ("delayed-match", "pattern", "delayed-xor", "evidence")
DECISIONS = ("delayed-match", "delayed-xor", "evidence")
#: small ones, made in milliseconds
SMALL = {
    "delayed-match": "delayed-match:num_train=32:num_test=64",
    "pattern": "pattern:num_train=4:num_test=12:num_outputs=2",
    "delayed-xor": "delayed-xor:dt=10:num_train=32:num_test=64",
    "evidence": "evidence:dt=10:num_train=32:num_test=64:background_rate=10",
}


def keys(task: Task) -> set[bytes]:
    return {x.numpy().tobytes() for x in task.x}


@pytest.mark.parametrize(
    ("name", "x", "target", "outputs", "steps"),
    [
        ("delayed-match", (128, 40, 9), (128,), 2, 5),
        ("pattern", (16, 200, 20), (16, 200, 1), 1, None),
        ("delayed-xor", (128, 900, 2), (128,), 2, 1),
        ("evidence", (128, 2000, 40), (128,), 2, 100),
    ],
)
def test_default_sizes_are_those_of_the_experiments(
    name: str, x: tuple[int, ...], target: tuple[int, ...], outputs: int, steps: int | None
) -> None:
    task = tasks.make(name)
    assert task.x.shape == x and task.x.dtype == torch.float32
    assert task.target.shape == target
    assert (task.input_size, task.output_size, task.output_steps) == (x[2], outputs, steps)
    assert torch.isfinite(task.x).all()


def test_authors_timing_of_delayed_match() -> None:
    assert DelayedMatchToSample(dt=100.0).x.shape[1] == 8


@pytest.mark.parametrize("name", GENERATED)
def test_items_batches_and_dtypes(name: str) -> None:
    task = tasks.make(SMALL[name], dtype=torch.float64)
    x, target = task[1]
    assert x.dim() == 2 and x.dtype == torch.float64
    assert target.dtype == (torch.float64 if name == "pattern" else torch.int64)
    ours = list(task.loader(3))
    theirs = list(DataLoader(task, batch_size=3, collate_fn=task.collate_fn))
    for (a, b), (c, d) in zip(ours, theirs, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    batch, wanted = ours[0]
    assert batch.shape == (len(x), 3, task.input_size)
    assert torch.equal(batch[:, 1], x)
    if task.time_targets:
        assert wanted.shape == (len(x), 3, task.output_size)
        assert torch.equal(wanted[:, 1], target)
    else:
        assert wanted.shape == (3,) and wanted[1] == target


@pytest.mark.parametrize("name", GENERATED)
def test_seed_decides_everything(name: str) -> None:
    for split in ("train", "test"):
        one, again, other = (tasks.make(SMALL[name], split, seed) for seed in (5, 5, 6))
        assert torch.equal(one.x, again.x) and torch.equal(one.target, again.target)
        assert not keys(one) & keys(other)
    state = np.random.get_state()[1].copy()
    before = torch.random.get_rng_state()
    tasks.make(SMALL[name], "test", 5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("name", GENERATED)
def test_train_and_test_are_disjoint_whatever_the_shift(name: str) -> None:
    train = tasks.make(SMALL[name], "train", 1)
    assert len(keys(train)) == len(train)
    for shift in (None, *train.shifts):
        test = tasks.make(SMALL[name], "test", 1, shift=shift)
        assert len(keys(test)) == len(test) and not keys(train) & keys(test)


@pytest.mark.parametrize("name", DECISIONS)
def test_the_test_set_does_not_depend_on_the_size_of_the_training_set(name: str) -> None:
    one, two = (tasks.make(name, "test", dt=10.0, num_test=9, num_train=k) for k in (10, 30))
    assert torch.equal(one.x, two.x)


@pytest.mark.parametrize("name", DECISIONS)
def test_shifted_sets_ask_about_the_same_trials(name: str) -> None:
    plain = tasks.make(SMALL[name], "test", 3)
    for shift in plain.shifts:
        shifted = tasks.make(SMALL[name], "test", 3, shift=shift)
        assert torch.equal(shifted.target, plain.target)
        assert shifted.output_steps == plain.output_steps
        longer = 1.5 if shift == "delay" else 1.0
        assert (shifted.x.shape == plain.x.shape) == (longer == 1.0)
        assert not torch.equal(shifted.x[:, : plain.x.shape[1]], plain.x)


@pytest.mark.parametrize("name", DECISIONS)
def test_constant_predictors_are_at_chance(name: str) -> None:
    for split in ("train", "test"):
        task = tasks.make(SMALL[name], split, 2)
        assert task.metric_name == "accuracy"
        for answer in (0, 1):
            logits = torch.zeros(7, len(task), 2)
            logits[:, :, answer] = 1.0
            _, target = task.batch(slice(None))
            assert task.metric(logits, target) == 0.5
            assert task.metric(logits[-1], target) == 0.5
            uniform = task.loss_fn(torch.zeros(9, len(task), 2), target)
            assert float(uniform) == pytest.approx(math.log(2))


def test_constant_predictor_of_patterns_explains_nothing() -> None:
    for split in ("train", "test"):
        task = PatternGeneration(split, 2, num_outputs=3, dtype=torch.float64)
        x, target = task.batch(slice(None))
        assert task.metric_name == "error"
        constant = target.mean(0, keepdim=True).expand_as(target)
        assert task.metric(constant, target) == pytest.approx(1.0)
        assert float(task.loss_fn(constant, target)) == pytest.approx(1.0, abs=1e-6)
        assert task.metric(target, target) == 0.0
        half = task.metric(target / 2, target)
        assert half == pytest.approx(0.25)
        assert x.shape[1] == target.shape[1] == len(task)


def test_loss_and_metric_read_the_decision_alone() -> None:
    task = tasks.make(SMALL["delayed-match"])
    _, target = task.batch(slice(0, 6))
    right = torch.zeros(12, 6, 2).scatter_(2, target.expand(12, 6).unsqueeze(2), 30.0)
    wrong_before = right.clone()
    wrong_before[: 12 - 5] = -right[: 12 - 5]
    assert float(task.loss_fn(wrong_before, target)) < 1e-6
    assert task.metric(wrong_before, target) == 1.0
    assert float(task.loss_fn(wrong_before[-6:], target)) < 1e-6
    spoiled = wrong_before.clone()
    spoiled[-5] = -right[-5]
    assert float(task.loss_fn(spoiled, target)) == pytest.approx(6.0, rel=1e-4)  # a fifth of 30
    with pytest.raises(ValueError, match=r"model_output: got shape \(6,\), expected \(T, B, C\)"):
        task.loss_fn(torch.zeros(6), target)
    pattern = tasks.make(SMALL["pattern"])
    _, target = pattern.batch(slice(None))
    with pytest.raises(ValueError, match=r"got shape \(200, 4, 1\), expected \(200, 4, 2\)"):
        pattern.loss_fn(torch.zeros(200, 4, 1), target)


def test_match_means_the_same_angle() -> None:
    for unseen in (False, True):
        task = DelayedMatchToSample(
            "test", 4, noise_std=1e-9, unseen_angles=unseen, dtype=torch.float64
        )
        fixation, ring = task.x[..., 0], task.x[..., 1:]
        assert (
            float((fixation[:, :-5] - 1).abs().max()) < 1e-7
            and float(fixation[:, -5:].max()) < 1e-7
        )
        sample, test = ring[:, :5].mean(1), ring[:, 30:35].mean(1)
        assert torch.equal((sample - test).abs().amax(1) < 1e-6, task.target == 1)
        assert float(ring[:, 5:30].abs().max()) < 1e-7 and float(ring[:, 35:].abs().max()) < 1e-7
        angles = torch.atan2(
            *(
                (sample * f(2 * math.pi * torch.arange(8.0, dtype=torch.float64) / 8)).sum(1)
                for f in (torch.sin, torch.cos)
            )
        )
        found = sorted({round(math.degrees(a)) % 360 for a in angles.tolist()})
        assert found == [45, 135, 225, 315] if unseen else found == [0, 90, 180, 270]


def test_noise_of_delayed_match_is_white_in_time() -> None:
    for dt, sd in ((20.0, 0.1 * math.sqrt(5)), (100.0, 0.1)):
        task = DelayedMatchToSample("test", 0, dt=dt, num_test=400)
        delay = task.x[:, round(100 / dt) : round(600 / dt), 1:]
        assert float(delay.std()) == pytest.approx(sd, rel=0.03)
        noisy = DelayedMatchToSample("test", 0, dt=dt, num_test=400, shift="noise")
        shifted = noisy.x[:, round(100 / dt) : round(600 / dt), 1:]
        assert torch.allclose(shifted, 3 * delay, atol=1e-5)


def test_xor_of_the_channels_that_carry_the_cues() -> None:
    task = DelayedXOR("test", 1, dtype=torch.float64)
    first, second = (task.x[:, part].mean(1) for part in (slice(0, 100), slice(800, 900)))
    assert torch.equal((first.argmax(1) != second.argmax(1)).long(), task.target)
    pairs = torch.bincount(2 * first.argmax(1) + second.argmax(1))
    assert pairs.tolist() == [128] * 4
    pause = task.x[:, 100:800]
    assert float(pause.mean()) == pytest.approx(0.02, abs=2e-4)
    assert float(pause.std()) == pytest.approx(0.01, rel=0.02)
    assert float(task.x[:, 45:55].amax(2).mean()) == pytest.approx(1.02, abs=0.05)
    low = DelayedXOR("test", 1, shift="amplitude", dtype=torch.float64)
    cue = (task.x - low.x).abs()
    assert float(cue.max()) == pytest.approx(0.3, abs=1e-3)
    assert DelayedXOR("test", 1, shift="delay").x.shape[1] == 100 + 1050 + 100


def test_evidence_is_the_side_with_more_cues() -> None:
    task = EvidenceAccumulation("test", 3, num_test=60)
    x = task.x
    assert set(x.unique().tolist()) == {0.0, 1.0}
    left, right = x[:, :1050, :10], x[:, :1050, 10:20]
    counts = [
        torch.stack([part[:, k * 150 : k * 150 + 100].sum((1, 2)) for k in range(7)], 1)
        for part in (left, right)
    ]
    assert torch.equal(counts[1] > counts[0], task.cues)
    assert torch.equal((task.cues.sum(1) > 3).long(), task.target)
    gaps = torch.cat([x[:, k * 150 + 100 : (k + 1) * 150, :30] for k in range(7)], 1)
    assert float(gaps.sum()) == 0 and float(x[:, 1050:1900, :30].sum()) == 0
    assert float(x[:, :, 30:].mean()) == pytest.approx(0.010, rel=0.05)
    assert float(x[:, -100:, 20:30].mean()) == pytest.approx(0.040, rel=0.05)
    assert float((counts[0] + counts[1]).mean()) == pytest.approx(40.0, rel=0.05)
    cues = EvidenceAccumulation("test", 3, num_test=2000, dt=50.0, recall_rate=9.0, cue_rate=9.0)
    agree = (cues.cues == cues.target.bool()[:, None]).double().mean()
    p = 0.7  # of cues on the trial's side, given that they are the majority
    ways = [math.comb(7, k) * p**k * (1 - p) ** (7 - k) for k in range(8)]
    expected = sum(k * w for k, w in enumerate(ways) if k > 3) / 7 / sum(ways[4:])
    assert float(agree) == pytest.approx(expected, abs=0.01)


def test_shifts_of_evidence_change_rates() -> None:
    plain, noise, rate = (
        EvidenceAccumulation("test", 0, num_test=100, dt=5.0, shift=s)
        for s in (None, "noise", "rate")
    )
    ratio = noise.x[..., 30:].mean() / plain.x[..., 30:].mean()
    assert float(ratio) == pytest.approx(3.0, rel=0.05)
    assert float(rate.x[..., :20].mean() / plain.x[..., :20].mean()) == pytest.approx(0.7, rel=0.05)
    assert torch.equal(plain.cues, noise.cues) and torch.equal(plain.cues, rate.cues)


def test_patterns_are_sums_of_the_five_sinusoids() -> None:
    task = PatternGeneration(dtype=torch.float64)
    wave = task.target[..., 0]
    assert torch.allclose(wave.square().mean(1), torch.ones(16, dtype=torch.float64))
    power = torch.fft.rfft(wave).abs()  # bins of 0.5 Hz
    assert float(power[:, [1, 2, 4, 6, 8]].min()) > 1.0
    rest = [k for k in range(101) if k not in (1, 2, 4, 6, 8)]
    assert float(power[:, rest].max()) < 1e-9


def test_patterns_of_the_test_set_are_those_of_the_training_set() -> None:
    train = PatternGeneration(num_train=3, dtype=torch.float64)
    for shift, noise in ((None, 0.1), ("noise", 0.3), ("large-noise", 1.0)):
        test = PatternGeneration("test", num_train=3, num_test=7, shift=shift, dtype=torch.float64)
        which = torch.arange(7) % 3
        assert torch.equal(test.target, train.target[which])
        assert float((test.x - train.x[which]).std()) == pytest.approx(noise, rel=0.03)
    phase = PatternGeneration("test", num_train=3, num_test=7, shift="phase", dtype=torch.float64)
    assert torch.equal(phase.target[0, :-25], train.target[0, 25:])
    assert torch.equal(phase.target[0, -25:], train.target[0, :25])
    rolled = torch.cat([train.x[0, 25:], train.x[0, :25]])
    assert float((phase.x[0] - rolled).std()) == pytest.approx(0.1, rel=0.05)


NAMED: list[tuple[str, dict[str, Any], str]] = [
    ("delayed-match", {"split": "valid"}, "split: got 'valid', expected 'train' or 'test'"),
    ("delayed-match", {"seed": -1}, "seed: got -1, expected at least 0"),
    ("delayed-match", {"num_train": 0}, "num_train: got 0, expected 1 to"),
    ("pattern", {"num_test": 10**9}, "num_test: got 1000000000, expected 1 to"),
    ("delayed-match", {"delay": 510.0}, r"delay: got 510 ms, expected a multiple of dt \(20 ms\)"),
    ("delayed-match", {"sample": 0.0}, "sample: got 0 ms, expected at least 20 ms"),
    ("delayed-match", {"dt": 0.0}, "dt: got 0.0, expected a finite number above 0"),
    ("delayed-match", {"noise_std": 0.0}, "noise_std: got 0.0, expected a finite number above 0"),
    ("delayed-match", {"noise_std": math.nan}, "noise_std: got nan"),
    ("delayed-match", {"num_angles": 1}, "num_angles: got 1, expected 2 to 360"),
    ("delayed-match", {"delay_factor": -1.0}, "delay_factor: got -1.0"),
    (
        "delayed-match",
        {"split": "test", "shift": "nose"},
        "shift: got 'nose'.*did you mean 'noise'",
    ),
    ("delayed-match", {"shift": "noise"}, "shift: got 'noise' with split 'train', expected"),
    ("delayed-xor", {"amplitude": 0.0}, "amplitude: got 0.0"),
    ("delayed-xor", {"baseline": -0.1}, "baseline: got -0.1"),
    ("delayed-xor", {"cue": 0.5}, "cue: got 0.5 ms, expected a multiple"),
    (
        "evidence",
        {"side_probability": 1.2},
        "side_probability: got 1.2, expected a prob.* 0.5 to 1",
    ),
    ("evidence", {"side_probability": 0.3}, "side_probability: got 0.3"),
    ("evidence", {"side_probability": math.nan}, "side_probability: got nan"),
    ("evidence", {"num_cues": 6}, "num_cues: got 6, expected an odd number"),
    ("evidence", {"num_inputs": 42}, "num_inputs: got 42, expected a multiple of 4"),
    ("evidence", {"cue_rate": 1001.0}, "cue_rate: got 1001 Hz .*at most 1000 Hz"),
    ("evidence", {"background_factor": 200.0}, r"background_rate: got 10 Hz \(x 200\)"),
    ("pattern", {"frequencies": (60.0,)}, "frequencies: got 60 Hz, expected below 50 Hz"),
    ("pattern", {"frequencies": ()}, "frequencies: got none"),
    ("pattern", {"frequencies": (0.0,)}, r"frequencies\[0\]: got 0.0"),
    ("pattern", {"split": "test", "noise_std": 0.0}, "noise_std: got 0, expected more than 0"),
    ("pattern", {"phase_offset": 2000.0}, "phase_offset: got 2000 ms, expected less than"),
    ("pattern", {"phase_offset": 500.0, "frequencies": (0.7,)}, "phase_offset: .*multiples of 0.5"),
]


@pytest.mark.parametrize(("name", "options", "message"), NAMED)
def test_values_out_of_range_are_refused_by_name(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.get(name)(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("delayed-match", {"seed": 1.0}, "seed: got float, expected int"),
        ("delayed-xor", {"num_train": "all"}, "num_train: got str, expected int"),
        ("delayed-xor", {"dt": "fast"}, "dt: got str, expected a number"),
        ("evidence", {"side_probability": True}, "side_probability: got bool"),
        ("pattern", {"dtype": torch.float16}, "dtype: got torch.float16, expected torch.float32"),
        ("pattern", {"frequencies": "low"}, "frequencies: got str"),
        ("delayed-match", {"unseen_angles": 1}, "unseen_angles: got int, expected bool"),
        ("evidence", {"split": "test", "shift": 3}, "shift: got int, expected one of noise"),
    ],
)
def test_wrong_types_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tasks.get(name)(**options)
