import pytest

from rtrl_ext import tasks


def test_text_gives_options() -> None:
    assert tasks.parse("delayed-xor") == ("delayed-xor", {})
    assert tasks.parse("delayed-match:delay=1000:unseen_angles=true:shift=noise:noise_std=.2") == (
        "delayed-match",
        {"delay": 1000, "unseen_angles": True, "shift": "noise", "noise_std": 0.2},
    )
    assert tasks.parse("pattern:frequencies=(1.0, 2.0)")[1] == {"frequencies": (1.0, 2.0)}
    assert tasks.parse("neurogym:env=GoNogo-v0:dt=20")[1] == {"env": "GoNogo-v0", "dt": 20}
    made = tasks.make("delayed-xor:delay=100:dt=10", "test", 1, num_test=3)
    assert made.x.shape == (3, 30, 2)


def test_options_and_defaults() -> None:
    assert tasks.options("delayed-xor")["delay"] == 700.0
    assert set(tasks.TASKS) == {
        "seqmnist", "delayed-match", "pattern", "delayed-xor", "evidence", "neurogym",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "delayed-mach",
            "task: got 'delayed-mach', expected one of .*did you mean 'delayed-match'",
        ),
        ("delayed-match:delya=3", "delayed-match has no option 'delya'; did you mean 'delay'"),
        ("delayed-match:delay", "got 'delay' in .*expected key=value"),
        ("delayed-match:delay=1:delay=2", "expected key=value, each key once"),
        ("delayed-match:seed=1", "has no option 'seed'"),
        ("", "task: got ''"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.parse(text)


def test_options_given_twice_or_unknown_are_refused() -> None:
    with pytest.raises(ValueError, match="dt is given in"):
        tasks.make("delayed-xor:dt=10", dt=20)
    with pytest.raises(ValueError, match="no option 'nose_std'; did you mean 'noise_std'"):
        tasks.make("delayed-xor", nose_std=20)
    with pytest.raises(TypeError, match="task: got int"):
        tasks.parse(3)  # type: ignore[arg-type]
