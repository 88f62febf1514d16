"""What the web layer keeps for each app."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from fastapi import FastAPI, Request

from app.web.error_responses import ErrorResponses

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AppState:
    """One app.

    Attributes:
        errors: renders and counts errors.
        singletons: the objects of its dialects, by class.
    """

    errors: ErrorResponses
    singletons: Mapping[Callable[[], object], object]


def keep_app_state(app: FastAPI, state: AppState) -> None:
    """Give an app its state."""
    app.state.web = state


def app_state(request: Request) -> AppState:
    """The state of a request's app."""
    state: AppState = request.app.state.web
    return state


def app_singleton(request: Request, kind: type[T]) -> T:
    """The app's object of a class that a dialect names in its `state`."""
    return cast(T, app_state(request).singletons[kind])
