"""Reads a request's headers and query."""

from typing import Annotated

from fastapi import Request
from pydantic import Field, TypeAdapter, ValidationError

from app.edits import RequestInfo
from app.errors import InvalidParameter
from app.request import Img2ImgRequest, Number
from app.web.request_state import request_state

_SECONDS: TypeAdapter[float] = TypeAdapter(Annotated[Number, Field(gt=0, allow_inf_nan=False)])


def request_info(request: Request) -> RequestInfo:
    """The id and the client of a request, and how long the client will wait: `X-Request-Timeout`, in seconds.

    Raises:
        InvalidParameter: the header is no finite decimal number above 0.
    """
    sent = request.headers.get("x-request-timeout")
    timeout = None
    if sent is not None:
        try:
            timeout = _SECONDS.validate_python(sent)
        except ValidationError:
            raise InvalidParameter(
                "X-Request-Timeout must be a number of seconds above 0, like 2.5.", param="X-Request-Timeout"
            ) from None
    state = request_state(request.scope)
    return RequestInfo(state.request_id, state.caller, timeout)


async def reject_query_fields(request: Request) -> None:
    """A dependency of routes that read their fields from the body. A coroutine, since FastAPI runs others in a thread.

    Raises:
        InvalidParameter: a field is in the query. Other names are ignored: some clients add a version.
    """
    for name in request.query_params:
        if name in Img2ImgRequest.model_fields:
            raise InvalidParameter(f"'{name}' is read from the body here, not from the query.", param=name)
