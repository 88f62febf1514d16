"""A new dialect is one object: the app takes its routes, errors, open and quiet paths and its description from that."""

import asyncio

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from app.errors import InvalidParameter, Misconfigured, ServiceError
from app.main import create_app
from app.routes import DIALECTS
from app.settings import Settings
from app.web.app_state import app_singleton
from app.web.dialects import Dialect, SettingRoute
from tests.support.fakes import FAKE


class Visits:
    """Counts requests."""

    def __init__(self) -> None:
        self.count = 0


class TinyError(BaseModel):
    tiny: str
    unused: str = ""


class TinyAnswer(BaseModel):
    count: int


router = APIRouter(prefix="/tiny")


@router.get("/count")
async def count(request: Request) -> TinyAnswer:
    visits = app_singleton(request, Visits)
    visits.count += 1
    return TinyAnswer(count=visits.count)


@router.get("/refused")
async def refused() -> None:
    raise InvalidParameter("That is wrong: \ud800.", param="that")


async def home() -> str:
    return "here"


TINY = Dialect(
    router=router,
    prefixes=("/tiny/",),
    edit_path="/tiny/edit",
    render_error=lambda error, request_id: (418, TinyError(tiny=f"{error.code} {error.message}")),
    open_paths=("/tiny/count",),
    state=(Visits,),
    setting_routes=(SettingRoute("predict_route", "GET", home),),
)


def tiny_app(**settings: str) -> FastAPI:
    others = [dialect for dialect in DIALECTS if "predict_route" not in [one.setting for one in dialect.setting_routes]]
    return create_app(Settings(devices="cpu", **settings), FAKE, dialects=[*others, TINY])  # type: ignore[arg-type]


def ask(app: FastAPI, *paths: str, **headers: str) -> list[httpx2.Response]:
    async def answers() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            return [await client.get(path, headers=headers) for path in paths]

    return asyncio.run(answers())


def test_new_dialect_error_has_its_shape_and_the_common_headers() -> None:
    app = tiny_app()
    (answer,) = ask(app, "/tiny/refused")
    assert (answer.status_code, answer.json()) == (418, {"tiny": "invalid_parameter That is wrong: \\ud800."})
    assert answer.headers["X-Error-Message"] == "That is wrong: \\ud800."


def test_new_dialect_unknown_path_names_its_edit_path() -> None:
    own, other = ask(tiny_app(), "/tiny/none", "/none")
    assert own.json()["tiny"].endswith("POST /tiny/edit.")
    assert other.json()["detail"].endswith("POST /img2img.")


def test_new_dialect_open_path_needs_no_key_and_the_rest_does() -> None:
    opened, closed, keyless_other = ask(tiny_app(api_keys="key"), "/tiny/count", "/tiny/refused", "/metrics")
    assert (opened.status_code, closed.status_code, keyless_other.status_code) == (200, 418, 401)
    assert closed.json()["tiny"].startswith("unauthorized ")


def test_new_dialect_state_is_one_object_of_each_app() -> None:
    app = tiny_app()
    assert [answer.json() for answer in ask(app, "/tiny/count", "/tiny/count")] == [{"count": 1}, {"count": 2}]
    assert ask(tiny_app(), "/tiny/count")[0].json() == {"count": 1}


def test_new_dialect_is_in_the_description() -> None:
    description = tiny_app().openapi()
    assert description["paths"]["/tiny/count"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/TinyAnswer"
    }
    assert "TinyAnswer" in description["components"]["schemas"]


def test_new_dialect_setting_route_is_at_the_path_of_the_setting() -> None:
    (answer,) = ask(tiny_app(predict_route="/home"), "/home")
    assert answer.json() == "here"
    with pytest.raises(Misconfigured, match="IMG2IMG_PREDICT_ROUTE: /tiny/count is the path of something else"):
        tiny_app(predict_route="/tiny/count")


def test_app_without_the_new_dialect_knows_nothing_of_it() -> None:
    (answer,) = ask(create_app(Settings(devices="cpu"), FAKE), "/tiny/count")
    assert answer.json()["code"] == "not_found"


def test_error_at_a_field_keeps_its_class_and_names_the_outer_field() -> None:
    error: ServiceError = InvalidParameter("Wrong.", param="seed")
    outer = error.at("instances[1]", "instances[1]: ")
    assert isinstance(outer, InvalidParameter)
    assert (outer.message, outer.param) == ("instances[1]: Wrong.", "instances[1].seed")
    assert (error.message, error.param) == ("Wrong.", "seed")
