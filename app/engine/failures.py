"""What the caller of a job is told that was not done."""

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


def closing() -> ShuttingDown:
    """The engine has been told to stop."""
    return ShuttingDown("The service is shutting down. Try again in a moment.")


def gone() -> Unavailable:
    """The engine has given up."""
    return Unavailable("The engine has stopped. The service is about to restart.", retry_after=10)


def too_late(seconds: float) -> DeadlineExceeded:
    """Its deadline, so many seconds after it came, has passed or cannot be made."""
    return DeadlineExceeded(
        f"The picture was not finished within {seconds:.3g} s. Send fewer steps, or try again when less is going on.",
        retry_after=5,
    )


def failed(message: Failed, deadline_seconds: float) -> ServiceError:
    """The worker said so; its deadline was so many seconds after it came."""
    match message.reason:
        case "expired":
            return too_late(deadline_seconds)
        case "memory":
            return OutOfMemory("The device has too little memory for this picture now. Try again in a moment.")
        case "non_finite":
            return NonFiniteResult(
                "The result held values that are no numbers, even in float32. Change the seed, prompt or picture."
            )
        case _:
            return EngineError("The picture could not be made. The log has the reason, under the request id.")
