"""Recurrent modules with the learning rule as an option."""

from .._stream.state import State
from .alif import ALIF, LIF
from .conversion import convert
from .dale import DaleMask, dale
from .feedback_linear import FeedbackLinear
from .firing_rates import firing_rate_loss
from .gated import GRU, LSTM
from .leaky_rnn import LeakyRNN
from .lru import LRU

__all__ = [
    "ALIF",
    "GRU",
    "LIF",
    "LRU",
    "LSTM",
    "DaleMask",
    "FeedbackLinear",
    "LeakyRNN",
    "State",
    "convert",
    "dale",
    "firing_rate_loss",
]
