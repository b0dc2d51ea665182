"""Recurrent modules with the learning rule as an option."""

from .conversion import convert
from .feedback_linear import FeedbackLinear
from .leaky_rnn import LeakyRNN

__all__ = ["FeedbackLinear", "LeakyRNN", "convert"]
