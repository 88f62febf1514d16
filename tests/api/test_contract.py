"""What /openapi.json promises, held against the running service by inputs that are made from it."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.images import FILES

# Of random bytes none is a picture.
schemathesis.openapi.format("binary", st.sampled_from([*FILES.values(), b"", b"no picture"]))


# Not whether what keeps to the description is accepted: random bytes are no picture, and steps x strength is a rule
# that a schema cannot say. What is refused, and how, other tests have.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/img2img", GenerationMode.POSITIVE),
        ("/img2img", GenerationMode.NEGATIVE),
        ("/v1/images/edits", GenerationMode.POSITIVE),
        ("/v1/images/edits", GenerationMode.NEGATIVE),
        ("/v2beta/stable-image/generate/sd3", GenerationMode.POSITIVE),
        ("/sdapi/v1/img2img", GenerationMode.POSITIVE),
        ("/sdapi/v1/img2img", GenerationMode.NEGATIVE),
        ("/predictions", GenerationMode.POSITIVE),
        ("/predictions", GenerationMode.NEGATIVE),
        # These take nothing that could be wrong.
        ("/health/live", GenerationMode.POSITIVE),
        ("/health/ready", GenerationMode.POSITIVE),
        ("/metrics", GenerationMode.POSITIVE),
    ],
)
def test_every_response_is_one_of_the_openapi_description(server: str, path: str, mode: GenerationMode) -> None:
    """Of requests that keep to the description, and of those that do not."""
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    (operation,) = (operation for operation in operations if operation.path == path)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=80,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()
