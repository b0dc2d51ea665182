"""The table of all rules, and which goes with which cell."""

from typing import Any

#: Every cell, in the order of the documentation.
CELLS = ("LeakyRNN", "GRU", "LSTM", "ALIF", "LIF", "LRU")


class Table(list[dict[str, Any]]):
    """Rows as dicts; printed as a matrix of rules and cells."""

    def _grid(self, yes: str, no: str) -> list[list[str]]:
        head = ["rule", *CELLS, "modes"]
        rows = [
            [
                row["name"],
                *(yes if cell in row["cells"] else no for cell in CELLS),
                ", ".join(row["modes"]),
            ]
            for row in self
        ]
        return [head, *rows]

    def __repr__(self) -> str:
        grid = self._grid("x", "")
        widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in grid
        ]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The matrix as a Markdown table."""
        head, *rows = self._grid("x", "")
        names = [[f"`{row[0]}`", *row[1:]] for row in rows]
        lines = [head, ["---"] * len(head), *names]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
