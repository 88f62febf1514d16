"""Fields of a request."""

from app.errors import InvalidParameter
from app.request import parse_request


def accepted(steps: int, strength: float) -> bool:
    """Whether a request with these two fields is taken."""
    try:
        parse_request({"prompt": "", "num_inference_steps": str(steps), "strength": repr(strength)})
    except InvalidParameter:
        return False
    return True
