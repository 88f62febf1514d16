"""Classifies exceptions of torch: a failure of one job, too little memory, or a lost device."""

import re

import torch

from app.engine.messages import Fault
from app.model.transfer import TransferError

_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_REFUSED = re.compile(r"CU(BLAS|DNN)_STATUS_(NOT_SUPPORTED|INVALID_VALUE|BAD_PARAM)")
"""cuBLAS or cuDNN did not run a call, because of its arguments or the memory that it may use. The device is well."""

_LOST = re.compile(r"CUDA (driver )?error|cu(BLAS|DNN) error|CU(BLAS|DNN)_STATUS_|NVML", re.IGNORECASE)


def fault(error: BaseException) -> Fault:
    """Whether an exception means that one job failed, that memory ran out, or that the device is lost.

    The process can go on after it frees memory, or after a library refused a call. Every other CUDA error (an illegal
    address, a failed assertion, a failed launch, a device that fell off the bus) corrupts the process's CUDA context:
    all later calls fail too. After a `TransferError`, no image from the device can be trusted.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(error)):
        return "memory"
    if isinstance(error, torch.AcceleratorError | TransferError):
        return "device"
    return "device" if _LOST.search(str(error)) and not _REFUSED.search(str(error)) else "job"
