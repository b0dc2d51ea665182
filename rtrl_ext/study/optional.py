"""Packages that only studies need, with a plain message where one is missing."""

import importlib
from types import ModuleType

PIP_LINE = 'pip install "rtrl_ext[study]"'


def need(name: str, purpose: str) -> ModuleType:
    """The module ``name``; ``ImportError`` with the pip line if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or name.split(".")[0] != error.name.split(".")[0]:
            raise
        raise ImportError(f"{purpose} needs the package {error.name}: {PIP_LINE}") from error
