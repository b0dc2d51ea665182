"""The recurrent cells that share ``_recurrence``, by the name of their operations."""

from .base import Adjoints, Cell, Pass
from .gru import GRU
from .lstm import LSTM

CELLS: dict[str, Cell] = {cell.name: cell for cell in (GRU(), LSTM())}

__all__ = ["CELLS", "Adjoints", "Cell", "Pass"]
