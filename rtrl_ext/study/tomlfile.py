"""TOML files with settings and arms: every key and type checked, errors with file and line."""

import dataclasses
import re
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..tasks.checks import nearest
from ._settings import Settings
from .arm_groups import Arm
from .config import KINDS, settings

#: what stands for None, which TOML doesn't have: "none", but for these settings
NONE_WORDS = {"train_size": "all", "test_size": "all", "rank": "full"}
#: type of each setting
SETTINGS: dict[str, Any] = typing.get_type_hints(Settings)
_WORDS = {str: "a string", int: "an integer", float: "a number", list: "a list", dict: "a table"}


class ConfigError(ValueError):
    """A file that is no configuration; the message names it, the key, and the line if known."""


class TomlFile:
    """A TOML file and where its keys stand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
        self._lines = _lines(text)

    def error(self, text: str, key: str = "", table: str = "", index: int = 0) -> ConfigError:
        """An error about a key of a table (``index``: which of several of that name)."""
        line = self._lines.get((table, index, key)) or self._lines.get((table, index, ""))
        return ConfigError(f"{self.path}: {text}" + (f" (line {line})" if line else ""))

    def place(self, error: Exception, name: str) -> ConfigError:
        """An error about the key or setting ``name``, whichever table it stands in."""
        table = "settings" if ("settings", 0, name) in self._lines else ""
        return self.error(str(error), name, table)

    def known(
        self, values: dict[str, Any], keys: Iterable[str], table: str = "", index: int = 0,
        label: str = "",
    ) -> None:  # fmt: skip
        """Refuse keys of a table that are not among ``keys``, with the nearest that is."""
        expected = list(keys)
        for key in values:
            if key in expected:
                continue
            hint = nearest(key, expected) or f"; expected one of {', '.join(expected)}"
            if not table and key in SETTINGS:
                hint = "; settings stand under [settings]"
            what = "setting" if table else "key"
            raise self.error(f"{label}unknown {what} {key!r}{hint}", key, table, index)

    def setting(
        self, key: str, value: Any, table: str = "settings", index: int = 0, label: str = ""
    ) -> Any:
        """A setting's value, of its own type, with None for the word that stands for it."""
        kinds = typing.get_args(SETTINGS[key]) or (SETTINGS[key],)
        if type(None) in kinds and isinstance(value, str) and value == none_word(key):
            return None
        wanted = next(kind for kind in kinds if kind is not type(None))
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            expected = _WORDS[wanted]
            if type(None) in kinds:
                expected += f' or "{none_word(key)}"'
            raise self.error(f"{label}{key}: got {value!r}, expected {expected}", key, table, index)
        if key == "data":  # as seen from the file
            return str((self.path.parent / Path(value).expanduser()).resolve())
        return value


def none_word(key: str) -> str:
    """What stands for None in a file and on the command line."""
    return NONE_WORDS.get(key, "none")


def arm_tables(file: TomlFile, entries: Any, base: Settings) -> list[Arm]:
    """The arms of the tables ``[[arm]]``: ``name``, ``kind``, and settings other than ``base``'s.

    Raises:
        ConfigError: an unknown key, a wrong type, values out of range or that don't go together, a
            name that is missing or there twice.
    """
    if not isinstance(entries, list) or not entries:
        raise file.error("expected tables [[arm]], each with a name")
    arms: list[Arm] = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise file.error("expected tables [[arm]], each with a name")
        rest = dict(entry)
        name = rest.pop("name", None)
        if not isinstance(name, str) or not name:
            raise file.error("an [[arm]] has no name", "name", "arm", i)
        if any(arm.name == name for arm in arms):
            raise file.error(f"the arm {name!r} is named twice", "name", "arm", i)
        label = f"{name!r}: "
        kind = rest.pop("kind", name if name in KINDS else "rule")
        file.known(rest, SETTINGS, "arm", i, label)
        overrides = {k: file.setting(k, v, "arm", i, label) for k, v in rest.items()}
        try:
            arm = Arm(name, kind, overrides)
        except (ValueError, TypeError) as error:
            raise file.error(str(error), "kind", "arm", i) from error
        try:
            settings("quick", **{**dataclasses.asdict(base), **overrides})
        except (ValueError, TypeError) as error:
            key = str(error).partition(":")[0]
            raise file.error(f"{label}{error}", key, "arm", i) from error
        arms.append(arm)
    return arms


def _lines(text: str) -> dict[tuple[str, int, str], int]:
    """Line of each ``(table, which of that name, key)``; the key "" is the table's head."""
    found: dict[tuple[str, int, str], int] = {}
    table, index, counts = "", 0, {"": 0}
    for number, line in enumerate(text.splitlines(), 1):
        head = re.match(r"\s*\[{1,2}\s*([\w\-\"'.]+)\s*\]", line)
        key = re.match(r"\s*[\"']?([\w\-]+)[\"']?\s*[=.]", line)
        if head:
            table = head.group(1).strip("\"'")
            index = counts[table] = counts.get(table, -1) + 1
            found[table, index, ""] = number
            found.setdefault(("", 0, table), number)
        elif key:
            found.setdefault((table, index, key.group(1)), number)
    return found
