"""What routes take from the app."""

from fastapi import Request

from app.service import Service


def service_of(request: Request) -> Service:
    """The app's service."""
    service: Service = request.app.state.service
    return service
