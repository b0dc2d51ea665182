"""Recurrent modules with the learning rule as an option."""

from .conversion import convert
from .dale import DaleMask, dale
from .feedback_linear import FeedbackLinear
from .firing_rates import firing_rate_loss
from .gated import GRU, LSTM
from .leaky_rnn import LeakyRNN

__all__ = [
    "GRU",
    "LSTM",
    "DaleMask",
    "FeedbackLinear",
    "LeakyRNN",
    "convert",
    "dale",
    "firing_rate_loss",
]
