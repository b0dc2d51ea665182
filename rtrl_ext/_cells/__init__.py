"""The recurrent cells that share ``_recurrence``, by the name of their operations."""

from .alif import ALIF
from .base import Adjoints, Cell, Pass
from .gru import GRU
from .lstm import LSTM

CELLS: dict[str, Cell] = {cell.name: cell for cell in (GRU(), LSTM(), ALIF())}

__all__ = ["CELLS", "Adjoints", "Cell", "Pass"]
