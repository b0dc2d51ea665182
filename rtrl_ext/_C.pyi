"""Compiled kernels; importing the module registers ``torch.ops.rtrl_ext.*``."""

def build_info() -> dict[str, str]:
    """How the kernels were built (compiler, torch target, instruction sets) and the set in use."""
