"""What an exception of torch says about the device: nothing, too little memory, or that it is lost."""

import re

import torch

from app.engine.messages import Fault

_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_LOST = re.compile(r"CUDA (driver )?error|cu(BLAS|DNN) error|CU(BLAS|DNN)_STATUS_|NVML", re.IGNORECASE)


def fault(error: BaseException) -> Fault:
    """Whether an exception concerns one job, the device's memory, or the device for good.

    Memory comes back once it is let go. Every other error that CUDA reports (an illegal address, a failed assertion, a
    launch that failed, a device that fell off the bus) spoils the process's context: whatever it does next fails too.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(error)):
        return "memory"
    if isinstance(error, torch.AcceleratorError) or _LOST.search(str(error)):
        return "device"
    return "job"
