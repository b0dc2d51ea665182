"""Packages that only some parts need, with a plain message where one is missing."""

import importlib
from types import ModuleType


def need(name: str, purpose: str, install: str) -> ModuleType:
    """The module ``name``; ``ImportError`` with the line that installs it where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or name.split(".")[0] != error.name.split(".")[0]:
            raise
        raise ImportError(f"{purpose} needs the package {error.name}: {install}") from error
