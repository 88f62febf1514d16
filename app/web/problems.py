"""How a refusal looks on the wire: a problem document, or the error of whichever dialect the path belongs to."""

from collections.abc import Callable, Container
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from app.errors import BodyTimeout, ServiceError, ShuttingDown, Unauthorized

_ROUTES = {
    "/v1/": "/v1/images/edits",
    "/sdapi/": "/sdapi/v1/img2img",
    "/v2beta/": "/v2beta/stable-image/generate/sd3",
    "/predictions": "/predictions",
}
"""Where each dialect makes pictures."""

SECURITY_HEADERS = {
    # What is sent is what it says it is, runs nothing, shows in no frame and in no other page, and says to no page
    # where its visitor came from.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""On every answer that does not set its own."""


def where_pictures_go(path: str) -> str:
    """What to tell a caller who asks for a path that is not there."""
    route = next((route for prefix, route in _ROUTES.items() if path.startswith(prefix)), "/img2img")
    return f"A picture and a prompt go to POST {route}."


def refusal(error: ServiceError, request_id: str, path: str, own: Container[str] = ()) -> JSONResponse:
    """An error as the callers of a path expect it, with the headers that retry loops read.

    Args:
        error: what is refused, and why.
        request_id: names the request in the log.
        path: the request's.
        own: paths that belong to no dialect, whatever they begin with.
    """
    headers = {**SECURITY_HEADERS, **error_headers(error), "X-Request-Id": request_id}
    if isinstance(error, BodyTimeout | ShuttingDown):
        headers["Connection"] = "close"
    status, body = error_body(error, request_id, "" if path in own else path)
    media_type = "application/problem+json" if "title" in body else None
    return JSONResponse(body, status, headers=headers, media_type=media_type)


def error_body(error: ServiceError, request_id: str, path: str) -> tuple[int, dict[str, Any]]:
    """Its status and what is sent as JSON."""
    document = problem_document(error, request_id)
    for prefix, render in _DIALECTS.items():
        if path.startswith(prefix):
            return render(document)
    return error.status, document


def _openai(document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """OpenAI's error object. Whatever is wrong with a request is 400 there: its SDKs have a class for that."""
    status = 400 if document["status"] in (406, 415, 422) else document["status"]
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    error = {
        "message": document["detail"],
        "type": kind or ("server_error" if status >= 500 else "invalid_request_error"),
        "param": document.get("param"),
        "code": "invalid_api_key" if status == 401 else document["code"],
    }
    return status, {"error": error}


def _webui(document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The web UI's: four fields, of which clients show one or all."""
    body = {"error": document["code"], "detail": document["detail"], "body": "", "errors": document["detail"]}
    return document["status"], body


def _stability(document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Stability AI's: an id, a name, and sentences."""
    body = {"id": document["request_id"], "name": document["code"], "errors": [document["detail"]]}
    return document["status"], body


def _cog(document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Cog's: a list of what is wrong with the input, or a sentence. Where every place is taken, it says conflict."""
    if document["status"] == 422:
        where = document.get("param", "input").split(".", 1)
        return 422, {"detail": [{"loc": ["body", *where], "msg": document["detail"], "type": document["code"]}]}
    status = 409 if document["code"] in ("queue_full", "too_many_requests") else document["status"]
    return status, {"detail": document["detail"]}


def _kserve(document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """KServe's: one sentence."""
    return document["status"], {"error": document["detail"]}


_DIALECTS: dict[str, Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]] = {
    "/v1/": _openai,
    "/sdapi/": _webui,
    "/v2beta/": _stability,
    "/v2/": _kserve,
    "/predictions": _cog,
}


_RFC_9110 = {413: "Content Too Large", 422: "Unprocessable Content"}
"""Phrases that Python knows only since 3.13; before, its names for these are those of older RFCs."""


def problem_document(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Render an error as the members of an RFC 9457 problem document (`application/problem+json`)."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _RFC_9110.get(error.status) or HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": _characters(error.message),
        "code": error.code,
        "request_id": request_id,
    }
    if error.param is not None:
        body["param"] = _characters(error.param)
    if error.retry_after is not None:
        body["retry_after"] = retry_after_seconds(error)
    return body


def _characters(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can bring in, but UTF-8 cannot take out."""
    return text.encode(errors="backslashreplace").decode()


def error_headers(error: ServiceError) -> dict[str, str]:
    """Headers that every dialect sends with an error: for people, for retry loops, for Hugging Face's client."""
    # The message may quote what was sent, and a header takes neither what is no ASCII nor what is no character.
    words = " ".join(error.message.split()).replace("…", "...")
    headers = {"X-Error-Message": "".join(sign if " " <= sign <= "~" else "?" for sign in words)}
    if error.retry_after is not None:
        headers["Retry-After"] = str(retry_after_seconds(error))
    if error.retryable is not None:
        headers["X-Should-Retry"] = str(error.retryable).lower()
    if isinstance(error, Unauthorized):
        # Basic too: it makes a browser ask for the key, as the password.
        headers["WWW-Authenticate"] = 'Basic realm="img2img", Bearer realm="img2img"'
    return headers


def retry_after_seconds(error: ServiceError) -> int:
    """Whole seconds for `Retry-After`: rounded up, at least 1."""
    return max(1, -int(-(error.retry_after or 0.0) // 1))
