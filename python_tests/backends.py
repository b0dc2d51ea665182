"""The CUDA operations that tests run on CPU tensors: emulated, and a GPU's where there is one."""

import emulated
import moved
import torch

CUDA = {"emulated": emulated.load}
if torch.cuda.is_available():
    CUDA["moved"] = moved.load
