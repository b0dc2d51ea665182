"""Every operation in plain, readable PyTorch: the definition that compiled kernels must equal."""
