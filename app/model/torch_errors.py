"""Classifies exceptions of torch: a failure of one job, too little memory, or a lost device."""

import re

import torch

from app.engine.messages import Fault

_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_LOST = re.compile(r"CUDA (driver )?error|cu(BLAS|DNN) error|CU(BLAS|DNN)_STATUS_|NVML", re.IGNORECASE)


def fault(error: BaseException) -> Fault:
    """Whether an exception means that one job failed, that memory ran out, or that the device is lost.

    The process can go on after it frees memory. Every other CUDA error (an illegal address, a failed assertion, a
    failed launch, a device that fell off the bus) corrupts the process's CUDA context: all later calls fail too.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(error)):
        return "memory"
    if isinstance(error, torch.AcceleratorError) or _LOST.search(str(error)):
        return "device"
    return "job"
