"""What a dialect declares about itself, and which dialect a path belongs to."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from starlette.routing import Match

from app.errors import Misconfigured, ServiceError
from app.settings import Settings
from app.web.problems import render_problem

ErrorRenderer = Callable[[ServiceError, str], tuple[int, BaseModel]]
"""An error and the id of its request to a status and a JSON body; fields of the body that are not set are left out."""


@dataclass(frozen=True, slots=True)
class SettingRoute:
    """A route whose path is the value of a setting; there is none if that is empty.

    Attributes:
        setting: name of the field of `Settings`.
        method: its HTTP method.
        endpoint: the function that answers.
        open: whether it can be read without an API key; it is a quiet path, too.
        counted_as: the route that stands for it in metrics and log lines; its own path if empty.
        options: further arguments of FastAPI's `add_api_route`.
    """

    setting: str
    method: str
    endpoint: Callable[..., Any]
    open: bool = False
    counted_as: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire format.

    Attributes:
        router: its routes.
        prefixes: beginnings of the paths that belong to it, found or not.
        edit_path: where it takes images; the answer to an unknown path names it. That of the first dialect if empty.
        render_error: the shape of its errors.
        open_paths: can be read without an API key; they are quiet, too.
        quiet_paths: polled by probes and clients: logged at debug level only, not traced, and not counted as in flight.
        setting_routes: routes whose paths the settings choose.
        state: classes of which each app has one object, for `app_singleton`.
    """

    router: APIRouter
    prefixes: tuple[str, ...] = ()
    edit_path: str = ""
    render_error: ErrorRenderer = render_problem
    open_paths: Collection[str] = ()
    quiet_paths: Collection[str] = ()
    setting_routes: tuple[SettingRoute, ...] = ()
    state: tuple[Callable[[], object], ...] = ()


class Dialects:
    """The dialects of one app.

    Args:
        dialects: the first one has the paths that belong to none.
        settings: choose further paths.

    Attributes:
        open_paths: of all dialects.
        quiet_paths: of all dialects, the open ones among them.
        counted_as: the route that stands for another in metrics and log lines.
    """

    def __init__(self, dialects: Sequence[Dialect], settings: Settings) -> None:
        self._dialects = tuple(dialects)
        self._from_settings = [
            (path, dialect, route)
            for dialect in dialects
            for route in dialect.setting_routes
            if (path := str(getattr(settings, route.setting)))
        ]
        opened = {path for path, _, route in self._from_settings if route.open}
        self.open_paths = frozenset(opened.union(*(dialect.open_paths for dialect in dialects)))
        self.quiet_paths = self.open_paths.union(*(dialect.quiet_paths for dialect in dialects))
        self.counted_as = {path: route.counted_as for path, _, route in self._from_settings if route.counted_as}

    def of(self, path: str) -> Dialect:
        """The dialect that a path belongs to. A path that a setting chose belongs to the dialect of that route."""
        for exact, dialect, _ in self._from_settings:
            if path == exact:
                return dialect
        return next((one for one in self._dialects if path.startswith(one.prefixes)), self._dialects[0])

    def edit_path(self, path: str) -> str:
        """Where the dialect of a path takes images."""
        return self.of(path).edit_path or self._dialects[0].edit_path

    def states(self) -> dict[Callable[[], object], object]:
        """A new object of each class in `Dialect.state`."""
        return {kind: kind() for dialect in self._dialects for kind in dialect.state}

    def add_to(self, app: FastAPI) -> None:
        """Add all routes to an app.

        Raises:
            Misconfigured: a path that a setting chose is that of another route.
        """
        for path, _, route in self._from_settings:
            taken = [*app.routes, *(one for dialect in self._dialects for one in dialect.router.routes)]
            scope = {"type": "http", "path": path, "method": route.method, "headers": []}
            found = [one for one in taken if getattr(one, "path", "") == path or one.matches(scope)[0] is Match.FULL]
            if any(getattr(one, "endpoint", None) is route.endpoint for one in found):
                continue
            if found:
                name = f"IMG2IMG_{route.setting.upper()}"
                raise Misconfigured(f"{name}: {path} is the path of something else. Choose another.")
            app.add_api_route(path, route.endpoint, methods=[route.method], **route.options)
        for dialect in self._dialects:
            app.include_router(dialect.router)
