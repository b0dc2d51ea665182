"""Every operation in plain, readable PyTorch: the definition that the compiled kernels must equal."""
