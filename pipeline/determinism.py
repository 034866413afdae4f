"""The same bits again: what GPUs need for it, at some cost in speed.

On CPUs runs repeat bit for bit already, as `dist.start` sets the number of threads. On GPUs sums
are rounded in an order that differs between runs unless the libraries are told otherwise; the same
kind and number of GPUs, and the same versions, are needed all the same.
"""

import os

import torch

# Both must be known before the libraries are first used; the user's own values stay.
_LIBRARIES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    "NCCL_ALGO": "Ring",  # the order of a sum over ranks is not left to tuning, or to the switches
}


def make_deterministic() -> None:
    """Only algorithms that give the same bits each time; call before anything runs on a GPU.

    Operations that have none raise a RuntimeError which names them.
    """
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
