"""The environment variable RTRL_EXT_ISA."""

import subprocess
import sys
import warnings

import pytest

from rtrl_ext import _isa


@pytest.mark.parametrize("value", ["foo", "AVX2", "avx"])
def test_an_unknown_name_is_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RTRL_EXT_ISA", value)
    with pytest.warns(RuntimeWarning, match=f"'{value}', which is ignored; .* avx512, avx2, base"):
        _isa.check()


@pytest.mark.parametrize("value", ["avx512", "avx2", "baseline", "", None])
def test_known_names_are_quiet(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("RTRL_EXT_ISA", raising=False)
    else:
        monkeypatch.setenv("RTRL_EXT_ISA", value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _isa.check()


def test_importing_the_package_warns() -> None:
    command = [sys.executable, "-c", "import rtrl_ext"]
    done = subprocess.run(
        command, env={"RTRL_EXT_ISA": "foo"}, capture_output=True, text=True, check=True
    )
    assert "RuntimeWarning: RTRL_EXT_ISA is 'foo'" in done.stderr
