"""Fast, exact online and biologically plausible learning of recurrent networks in PyTorch."""

__version__ = "0.1.0"
