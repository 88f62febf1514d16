"""Every error that a client can get: one class is one HTTP status and one code.

    ServiceError
    ├── BodyTimeout             408  body_timeout
    ├── Unauthorized            401  unauthorized
    ├── OriginNotAllowed        403  origin_not_allowed
    ├── Interrupted             409  interrupted
    ├── InvalidImage            422  invalid_image
    ├── InvalidParameter        422  invalid_parameter
    ├── MalformedBody           400  malformed_body
    ├── ModelNotFound           404  model_not_found
    ├── PredictionNotFound      404  prediction_not_found
    ├── RouteNotFound           404  not_found
    ├── MethodNotAllowed        405  method_not_allowed
    ├── NotAcceptable           406  not_acceptable
    ├── BodyTooLarge            413  body_too_large
    ├── ImageTooLarge           413  image_too_large
    ├── UnsupportedImageFormat  415  unsupported_image_format
    ├── UnsupportedMediaType    415  unsupported_media_type
    ├── SigningFailed           500  signing_failed
    ├── EngineError             500  inference_failed
    │   ├── NonFiniteResult     500  non_finite_result
    │   └── WorkerLost          500  worker_lost
    └── Unavailable             503  unavailable
        ├── DeadlineExceeded    503  deadline_exceeded
        ├── OutOfMemory         503  out_of_memory
        ├── QueueFull           503  queue_full
        ├── ShuttingDown        503  shutting_down
        └── TooManyRequests     429  too_many_requests

`CheckpointError`, `EngineStopped` and `Misconfigured` are outside the tree: they end the program.
A message says what to do, and never holds a prompt, an image or a traceback.
"""

from collections.abc import Iterator
from typing import Self

CLIENT_CLOSED_REQUEST = 499
"""The status in the log and the metrics, as nginx has it, if the client disconnects before the answer."""


class ServiceError(Exception):
    """Base of all errors that are sent to a client.

    Args:
        message: one or more plain sentences that say what to do.
        param: the request field at fault, if it is one.
        retry_after: seconds after which the same request may succeed.
    """

    status: int = 500
    code: str = "internal_error"
    retryable: bool | None = None
    """Whether a client library should send the request again; None leaves it to the status."""

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = _encodable(message)
        self.param = None if param is None else _encodable(param)
        self.retry_after = retry_after

    def at(self, where: str, prefix: str = "") -> Self:
        """The same error for a field that is inside another one: `input.seed`.

        Args:
            where: the outer field.
            prefix: goes before the message.
        """
        retry = {} if self.retry_after is None else {"retry_after": self.retry_after}
        return type(self)(f"{prefix}{self.message}", param=f"{where}.{self.param}", **retry)


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can bring in, but UTF-8 cannot encode."""
    return text.encode(errors="backslashreplace").decode()


def _below(parent: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for error in parent.__subclasses__():
        yield error
        yield from _below(error)


class BodyTimeout(ServiceError):
    """The request body did not arrive in time."""

    status, code = 408, "body_timeout"


class Unauthorized(ServiceError):
    """The request has no API key, or one that is not known."""

    status, code = 401, "unauthorized"


class OriginNotAllowed(ServiceError):
    """A browser sent the request for a page whose origin is not listed."""

    status, code = 403, "origin_not_allowed"


class Interrupted(ServiceError):
    """The client ended the work before it was done."""

    status, code, retryable = 409, "interrupted", False


class InvalidParameter(ServiceError):
    """A field has a value that cannot be used."""

    status, code = 422, "invalid_parameter"


class InvalidImage(ServiceError):
    """The upload is of a supported format, but empty, truncated or corrupt."""

    status, code = 422, "invalid_image"


class MalformedBody(ServiceError):
    """The body does not match its Content-Type."""

    status, code = 400, "malformed_body"


class ModelNotFound(ServiceError):
    """The request names a model that is not served here."""

    status, code = 404, "model_not_found"


class PredictionNotFound(ServiceError):
    """The client has no running prediction with this id."""

    status, code = 404, "prediction_not_found"


class RouteNotFound(ServiceError):
    """There is no such path."""

    status, code = 404, "not_found"


class MethodNotAllowed(ServiceError):
    """The path does not take this method."""

    status, code = 405, "method_not_allowed"


class NotAcceptable(ServiceError):
    """The Accept header admits no format that the service can write."""

    status, code = 406, "not_acceptable"


class BodyTooLarge(ServiceError):
    """The request body has more bytes than the limit."""

    status, code = 413, "body_too_large"


class ImageTooLarge(ServiceError):
    """The image has more pixels than the limit."""

    status, code = 413, "image_too_large"


class UnsupportedImageFormat(ServiceError):
    """The upload is not a PNG, JPEG or WebP file."""

    status, code = 415, "unsupported_image_format"


class UnsupportedMediaType(ServiceError):
    """The route does not take this Content-Type."""

    status, code = 415, "unsupported_media_type"


class EngineError(ServiceError):
    """Denoising failed for this request alone. The log has the reason."""

    status, code, retryable = 500, "inference_failed", False


class SigningFailed(ServiceError):
    """The image was made, but the certificate can no longer sign it."""

    status, code, retryable = 500, "signing_failed", False


class NonFiniteResult(EngineError):
    """The result held NaN or infinity even when decoded in float32."""

    code = "non_finite_result"


class WorkerLost(EngineError):
    """The worker process died twice while it ran this request."""

    code = "worker_lost"


class Unavailable(ServiceError):
    """The service cannot take or finish this request now. A later one may succeed."""

    status, code, retryable = 503, "unavailable", True

    def __init__(self, message: str, *, param: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, param=param, retry_after=retry_after)


class DeadlineExceeded(Unavailable):
    """The request cannot be, or was not, finished before its deadline."""

    code = "deadline_exceeded"


class OutOfMemory(Unavailable):
    """The device had too little memory for this image alone, twice."""

    code = "out_of_memory"


class QueueFull(Unavailable):
    """The queue is full."""

    code = "queue_full"


class ShuttingDown(Unavailable):
    """The service is shutting down and takes no new requests."""

    code = "shutting_down"


class TooManyRequests(Unavailable):
    """The caller has more than its share of the queue while others wait."""

    status, code = 429, "too_many_requests"


CODES = tuple(sorted({ServiceError.code, *(one.code for one in _below(ServiceError))}))
"""Every code that an answer can have."""


class CheckpointError(Exception):
    """The weights cannot be found, fetched or used; the message says what to change."""


class EngineStopped(Exception):
    """The engine gave up: its worker cannot be started, or died too often in a row."""


class Misconfigured(Exception):
    """A setting cannot be followed; the message names it and says what to change."""
