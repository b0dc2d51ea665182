"""The environment variable that lowers the instruction set of the compiled kernels."""

import os
import warnings

VARIABLE = "RTRL_EXT_ISA"
KNOWN = ("avx512", "avx2", "baseline")  # as in csrc/kernels/cpu/dispatch.cpp


def check() -> None:
    """RuntimeWarning for a value that the kernels don't know and so ignore."""
    value = os.environ.get(VARIABLE)
    if value and value not in KNOWN:
        warnings.warn(
            f"{VARIABLE} is {value!r}, which is ignored; expected one of {', '.join(KNOWN)}",
            RuntimeWarning,
            stacklevel=3,
        )
