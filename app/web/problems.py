"""Errors as problem documents (RFC 9457), and the headers that errors of all dialects have."""

from http import HTTPStatus

from pydantic import BaseModel, Field

from app.errors import BodyTimeout, ServiceError, ShuttingDown, Unauthorized

SECURITY_HEADERS = {
    # The content is what its type says, runs nothing, shows in no frame and no other page, and a browser that follows
    # a link in it does not say where it came from.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""On every answer that does not set its own."""

PROBLEM_TYPE = "application/problem+json"

_RFC_9110 = {413: "Content Too Large", 422: "Unprocessable Content"}
"""Phrases that Python has since 3.13; before, it has those of older RFCs."""


class Problem(BaseModel):
    """An error, as RFC 9457 has it (`application/problem+json`)."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(
        description="What is wrong, and what to do.",
        examples=[
            "num_inference_steps x strength must be at least 1, but 4 x 0.2 would run no step: for 4 steps send a "
            "strength of at least 0.25, or for strength 0.2 at least 5 steps."
        ],
    )
    code: str = Field(description="The same for the same kind of error, for programs.", examples=["invalid_parameter"])
    request_id: str = Field(examples=["3f1c0b6a9d0e4c5f8a7b6c5d4e3f2a1b"])
    param: str | None = Field(None, description="The field at fault, if one is.", examples=["strength"])
    retry_after: int | None = Field(None, description="Seconds, with 503.", examples=[2])


def render_problem(error: ServiceError, request_id: str) -> tuple[int, Problem]:
    """An error as a problem document."""
    problem = Problem(
        type="about:blank",
        title=_RFC_9110.get(error.status) or HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.message,
        code=error.code,
        request_id=request_id,
    )
    if error.param is not None:
        problem.param = error.param
    if error.retry_after is not None:
        problem.retry_after = _retry_after_seconds(error.retry_after)
    return error.status, problem


def error_headers(error: ServiceError, request_id: str) -> dict[str, str]:
    """Headers of an error in every dialect: for people, for retry loops, for Hugging Face's client."""
    # The message may quote the request, and a header takes printable ASCII only.
    words = " ".join(error.message.split()).replace("…", "...")
    message = "".join(character if " " <= character <= "~" else "?" for character in words)
    headers = {**SECURITY_HEADERS, "X-Error-Message": message, "X-Request-Id": request_id}
    if error.retry_after is not None:
        headers["Retry-After"] = str(_retry_after_seconds(error.retry_after))
    if error.retryable is not None:
        headers["X-Should-Retry"] = str(error.retryable).lower()
    if isinstance(error, Unauthorized):
        # Basic too: it makes a browser ask for the key, as the password.
        headers["WWW-Authenticate"] = 'Basic realm="img2img", Bearer realm="img2img"'
    if isinstance(error, BodyTimeout | ShuttingDown):
        headers["Connection"] = "close"
    return headers


def _retry_after_seconds(seconds: float) -> int:
    """Integer seconds for `Retry-After`: rounded up, at least 1."""
    return max(1, -int(-seconds // 1))
