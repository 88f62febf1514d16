"""The errors of jobs that are not done."""

from app.engine.messages import Failed
from app.errors import (
    DeadlineExceeded,
    EngineError,
    NonFiniteResult,
    OutOfMemory,
    ServiceError,
    ShuttingDown,
    Unavailable,
)


def shutting_down_error() -> ShuttingDown:
    """The engine admits no more jobs."""
    return ShuttingDown("The service is shutting down. Try again in a moment.")


def engine_stopped_error() -> Unavailable:
    """The engine has given up."""
    return Unavailable("The engine has stopped. The service is about to restart.", retry_after=10)


def deadline_error(seconds: float) -> DeadlineExceeded:
    """The job's deadline, so many seconds after its arrival, has passed or cannot be met."""
    return DeadlineExceeded(
        f"The image was not finished within {seconds:.3g} s. Send fewer steps, or try again when the service is less "
        "busy.",
        retry_after=5,
    )


def error_for(message: Failed, deadline_seconds: float) -> ServiceError:
    """The error for a job that failed on its worker; its deadline was so many seconds after its arrival."""
    match message.reason:
        case "expired":
            return deadline_error(deadline_seconds)
        case "memory":
            return OutOfMemory("The device has too little memory for this image now. Try again in a moment.")
        case "non_finite":
            return NonFiniteResult(
                "The result has values that are not numbers, even in float32. Change the seed, the prompt or the image."
            )
        case _:
            return EngineError("The image could not be made. The log has the reason, under the request id.")
