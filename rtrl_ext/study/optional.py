"""Packages that only studies need, with a plain message where one is missing."""

from types import ModuleType

from .. import _optional


def need(name: str, purpose: str) -> ModuleType:
    """The module ``name``; ``ImportError`` with the pip line if it is not installed."""
    return _optional.need(name, purpose, 'pip install "rtrl_ext[study]"')
