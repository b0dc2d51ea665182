"""A line on standard error that counts products, or steps, while a solver runs."""

import sys
import time


class Progress:
    """Rewrites one line at most ten times a second; does nothing when ``enabled`` is False."""

    def __init__(
        self, label: str, total: int | None, enabled: bool, unit: str = "products"
    ) -> None:
        self._label, self._unit = label, unit
        self._total = total
        self._enabled = enabled
        self._last = 0.0
        self._shown = False

    def update(self, done: int, note: str = "") -> None:
        """Show how much is done and a short note."""
        now = time.monotonic()
        if not self._enabled or now - self._last < 0.1:
            return
        self._last = now
        self._shown = True
        of = f"/{self._total}" if self._total else ""
        tail = f"; {note}" if note else ""
        sys.stderr.write(f"\r\x1b[K{self._label}: {done}{of} {self._unit}{tail}")
        sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shown:
            sys.stderr.write("\n")
            sys.stderr.flush()
