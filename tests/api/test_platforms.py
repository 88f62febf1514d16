"""What KServe, Vertex AI and their like ask a container for, as their documentation shows it."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from app.errors import Misconfigured
from app.main import create_app
from app.settings import Settings
from tests.support.http import post, problem
from tests.support.servers import StartServer, run_server


class TestKServe:
    def test_kserve_health_and_metadata_are_answered(self, server: str) -> None:
        def get(path: str) -> Any:
            answer = httpx2.get(f"{server}/v2{path}")
            assert answer.status_code == 200
            return answer.json()

        assert get("/health/live") == {"live": True}
        assert get("/health/ready") == {"ready": True}
        assert set(get("")) == {"name", "version", "extensions"}
        name = httpx2.get(f"{server}/v1/models").json()["data"][0]["id"]
        assert get(f"/models/{name}") == {
            "name": name,
            "platform": "diffusers",
            "versions": [],
            "inputs": [],
            "outputs": [],
        }
        assert get(f"/models/{name}/ready") == {"name": name, "ready": True}
        answer = httpx2.get(f"{server}/v2/models/other/ready")
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
        assert "no model 'other' here. Put 'fake' in the path, or" in answer.json()["error"]
        answer = httpx2.post(f"{server}/v2/models/{name}/infer", json={"inputs": []})
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
        assert "POST /img2img" in answer.json()["error"]

    def test_kserve_before_ready_answers_503(self, start_server: StartServer) -> None:
        with start_server("tests.support.fakes:hang", wait=False, model="fake") as url:
            assert httpx2.get(f"{url}/v2/health/live").status_code == 200
            for path in ("/v2/health/ready", "/v2/models/fake/ready"):
                answer = httpx2.get(f"{url}{path}")
                assert (answer.status_code, answer.json()["ready"]) == (503, False)

    def test_kserve_probes_need_no_key_and_metadata_does(self, start_server: StartServer) -> None:
        with start_server(api_keys="key") as url:
            assert httpx2.get(f"{url}/v2/health/ready").status_code == 200
            assert httpx2.get(f"{url}/v2").status_code == 401


ROUTES: dict[str, Any] = {"health_route": "/vertex/health", "predict_route": "/vertex:predict"}


@pytest.fixture(scope="module")
def vertex() -> Iterator[str]:
    """A server with Vertex AI's routes."""
    with run_server(**ROUTES) as url:
        yield url


class TestVertex:
    def test_vertex_variables_set_port_and_routes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIP_HTTP_PORT", "8080")
        monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/1/deployedModels/2")
        monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1/deployedModels/2:predict")
        settings = Settings()
        assert (settings.port, settings.health_route) == (8080, "/v1/endpoints/1/deployedModels/2")
        assert settings.predict_route == "/v1/endpoints/1/deployedModels/2:predict"

    def test_vertex_instances_become_predictions(self, vertex: str, png: bytes) -> None:
        image = base64.b64encode(png).decode()
        body = {
            "instances": [
                {"image": image, "prompt": "a wizard"},
                {"image": {"bytesBase64Encoded": image}, "prompt": "a cat", "seed": 9, "output_format": "webp"},
            ],
            "parameters": {"strength": 0.5, "seed": 7},
        }
        assert httpx2.get(f"{vertex}/vertex/health").status_code == 200
        answer = httpx2.post(f"{vertex}/vertex:predict", json=body)
        assert answer.status_code == 200
        first, second = answer.json()["predictions"]
        assert (first["mimeType"], first["seed"]) == ("image/png", 7)
        assert (second["mimeType"], second["seed"]) == ("image/webp", 9)
        alone = post(vertex, png, prompt="a wizard", strength="0.5", seed="7").content
        assert base64.b64decode(first["bytesBase64Encoded"]) == alone

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "instances"),
            ({"instances": []}, "instances"),
            ({"instances": [{}] * 17}, "instances"),
            ({"instances": [{}], "parameters": [1]}, "instances"),
            ({"instances": ["x"]}, "instances[0]"),
            ({"instances": [{}], "parameters": []}, "instances"),
            ({"instances": [{"image": "AAAA"}], "seed": 1}, "seed"),
            ({"instances": [{"prompt": "x"}]}, "instances[0].image"),
            ({"instances": [{"image": {"gcsUri": "gs://x"}}]}, "instances[0].image"),
            ({"instances": [{"image": "!"}]}, "instances[0].image"),
            ({"instances": [{"image": "AAAA"}, {"image": "AAAA", "strength": 0.1}]}, "instances[1].strength"),
        ],
    )
    def test_vertex_invalid_field_is_named(self, vertex: str, body: Any, param: str) -> None:
        answer = httpx2.post(f"{vertex}/vertex:predict", json=body)
        assert (answer.status_code, answer.json()["param"]) == (422, param)

    def test_vertex_field_in_the_query_is_refused(self, vertex: str, png: bytes) -> None:
        body = {"instances": [{"image": base64.b64encode(png).decode()}]}
        answer = httpx2.post(f"{vertex}/vertex:predict", params={"seed": 5}, json=body)
        problem(answer, 422, "invalid_parameter", "seed")

    def test_vertex_error_names_the_instance(self, vertex: str, png: bytes) -> None:
        one, other = ({"b64": base64.b64encode(data).decode()} for data in (png, b"GIF89a"))
        answer = httpx2.post(f"{vertex}/vertex:predict", json={"instances": [{"image": one}, {"image": other}]})
        problem(answer, 415, "unsupported_image_format", "instances[1].image")
        assert answer.json()["detail"].startswith("instances[1]: ")

    def test_vertex_error_of_no_field_keeps_its_message(self, vertex: str, png: bytes) -> None:
        body = {"instances": [{"image": base64.b64encode(png).decode(), "prompt": "fail_at=1"}]}
        answer = httpx2.post(f"{vertex}/vertex:predict", json=body)
        problem(answer, 500, "inference_failed")
        assert answer.json()["detail"].startswith("The image could not be made.")

    def test_vertex_headers_are_those_that_all_images_have(self, vertex: str, png: bytes) -> None:
        image = base64.b64encode(png).decode()
        instances = [{"image": image, "prompt": "word " * count, "strength": 0.5} for count in (80, 100)]
        headers = httpx2.post(f"{vertex}/vertex:predict", json={"instances": instances, "parameters": None}).headers
        assert (headers["x-steps-run"], headers["x-prompt-tokens-cut"]) == ("2", "25")
        assert "x-seed" not in headers

    def test_vertex_more_instances_than_the_queue_are_refused(self, start_server: StartServer) -> None:
        with start_server(queue_size=1, **ROUTES) as url:
            answer = httpx2.post(f"{url}/vertex:predict", json={"instances": [{"image": "AAAA"}] * 2})
        problem(answer, 422, "invalid_parameter", "instances")

    def test_vertex_errors_are_problems_under_any_path(self, start_server: StartServer) -> None:
        path = "/v1/endpoints/1/deployedModels/2"
        with start_server(api_keys="key", health_route=path, predict_route=f"{path}:predict") as url:
            assert httpx2.get(f"{url}{path}").status_code == 200
            problem(httpx2.post(f"{url}{path}:predict", json={}), 401, "unauthorized")
            answer = httpx2.post(f"{url}{path}:predict", json={}, headers={"X-API-Key": "key"})
            problem(answer, 422, "invalid_parameter", "instances")
            assert httpx2.post(f"{url}/v1/other", headers={"X-API-Key": "key"}).json()["error"]["code"] == "not_found"

    @pytest.mark.parametrize(
        ("name", "routes"),
        [
            ("HEALTH", {"health_route": "/img2img"}),
            ("HEALTH", {"health_route": "/v1/models/sdxl"}),
            ("HEALTH", {"health_route": "/openapi.json"}),
            ("HEALTH", {"health_route": "/health/live"}),
            ("PREDICT", {"predict_route": "/invocations"}),
            ("PREDICT", {"predict_route": "/metrics"}),
            ("PREDICT", {"predict_route": "/predictions/mine/cancel"}),
            ("PREDICT", {"predict_route": "/vertex", "health_route": "/vertex"}),
        ],
    )
    def test_path_of_another_route_ends_the_start(self, name: str, routes: dict[str, Any]) -> None:
        path = next(iter(routes.values()))
        with pytest.raises(Misconfigured, match=rf"IMG2IMG_{name}_ROUTE: {path} is the path of something else"):
            create_app(Settings(**routes))

    def test_path_of_the_same_route_is_accepted(self, start_server: StartServer) -> None:
        model = "/v1/models/sdxl:predict"
        with start_server(api_keys="key", health_route="/ping", predict_route=model) as url:
            assert httpx2.get(f"{url}/ping").status_code == 200
            answer = httpx2.post(f"{url}{model}", json={}, headers={"X-API-Key": "key"})
            problem(answer, 422, "invalid_parameter", "instances")

    def test_health_is_open_for_get_and_head_only(self, start_server: StartServer) -> None:
        with start_server(api_keys="key", **ROUTES) as url:
            for path in ("/vertex/health", "/health", "/health-check"):
                assert [httpx2.request(method, f"{url}{path}").status_code for method in ("GET", "HEAD")] == [200, 200]
                assert httpx2.options(f"{url}{path}").status_code == 405
                assert httpx2.post(f"{url}{path}").status_code == 401

    def test_vertex_health_needs_no_key_and_predictions_do(self, start_server: StartServer) -> None:
        with start_server(api_keys="key", **ROUTES) as url:
            assert httpx2.get(f"{url}/vertex/health").status_code == 200
            assert httpx2.post(f"{url}/vertex:predict", json={}).status_code == 401
