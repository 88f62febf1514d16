"""The classification of torch's errors: a failed job, out of memory, or a lost device."""

import pytest
import torch

from app.model.torch_errors import fault


def of_torch() -> Exception:
    """torch's own error for more memory than the machine has."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    return error.value


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (of_torch(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "device"),
        (RuntimeError("CUDA error: device-side assert triggered"), "device"),
        (RuntimeError("CUDA error: unspecified launch failure"), "device"),
        (RuntimeError("CUDA driver error: invalid argument"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), "device"),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear for non-contiguous input."),
            "job",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM_NULL_POINTER"), "job"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"), "job"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"), "job"),
        (torch.AcceleratorError("CUDA error: after CUBLAS_STATUS_INVALID_VALUE"), "device"),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED"), "device"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), "job"),
        (ValueError("no such scheduler"), "job"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_error_is_classified_as_job_memory_or_device(error: Exception, what: str) -> None:
    assert fault(error) == what
