"""Recurrent modules with the learning rule as an option."""

from .alif import ALIF, LIF
from .conversion import convert
from .feedback_linear import FeedbackLinear
from .gated import GRU, LSTM
from .leaky_rnn import LeakyRNN
from .lru import LRU

__all__ = ["ALIF", "GRU", "LIF", "LRU", "LSTM", "FeedbackLinear", "LeakyRNN", "convert"]
