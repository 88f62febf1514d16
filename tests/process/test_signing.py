"""Signed pictures, as the C2PA library's own reader sees them, and certificates that cannot sign."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from PIL import Image

from app.cli.edit import edit_here
from app.client import Img2Img
from app.errors import Misconfigured, SigningFailed
from app.imaging.c2pa import Signer, signer
from app.imaging.encode import DIGITAL_SOURCE_TYPE
from app.pixels import OutputFormat
from app.settings import Settings
from tests.support.certificates import Authority, read
from tests.support.fakes import FAKE
from tests.support.http import eventually, post, sample
from tests.support.images import noise, saved
from tests.support.servers import run_server

PNG = saved(noise((24, 24)), "PNG")
KEYS: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.watched_files._RECHECK_SECONDS", 0.02)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> tuple[Path, Path]:
    return authority.issue(tmp_path, KEYS["P-256"]())


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_signed_image_says_what_it_is(output_format: str, authority: Authority, files: tuple[Path, Path]) -> None:
    form = {"prompt": "unmistakable words", "seed": "7", "output_format": output_format}
    with run_server(c2pa_certificate=files[0], c2pa_key=files[1]) as url:
        answer = post(url, PNG, **form)
        assert answer.is_success
        again = post(url, PNG, **form)
        metrics = httpx2.get(f"{url}/metrics").text
    with run_server() as url:
        unsigned = post(url, PNG, **form)
    state, manifest = read(answer.content, f"image/{output_format}", authority)
    assert state == "Trusted"
    (assertion,) = manifest["assertions"]
    opened, edited = assertion["data"]["actions"]
    assert (opened["action"], edited["action"]) == ("c2pa.opened", "c2pa.edited")
    assert edited["digitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert manifest["claim_generator_info"][0]["name"] == "sdxl-turbo-img2img"
    assert manifest["signature_info"]["common_name"] == "Ours"
    assert "thumbnail" not in manifest
    assert set(manifest["ingredients"][0]) == {"title", "instance_id", "relationship", "label"}
    # Signed twice is not the same file, but the same picture, and all that was in it before is there still.
    assert again.content != answer.content
    pictures = [Image.open(io.BytesIO(one.content)) for one in (answer, again, unsigned)]
    assert len({picture.tobytes() for picture in pictures}) == 1
    assert len({str(picture.info.get("parameters", picture.getexif())) for picture in pictures}) == 1
    assert len({picture.info.get("xmp") for picture in pictures}) == 1
    assert "sign;dur=" in answer.headers["server-timing"]
    assert 'img2img_stage_duration_seconds_count{stage="sign"} 2.0' in metrics


def test_changed_image_fails_verification(authority: Authority, files: tuple[Path, Path]) -> None:
    signed = bytearray(Signer(*files).sign(PNG, OutputFormat.PNG))
    assert 2_500 < len(signed) - len(PNG) < 4_000
    assert read(bytes(signed), "image/png", authority)[0] == "Trusted"
    signed[-40] ^= 1
    assert read(bytes(signed), "image/png", authority)[0] == "Invalid"


@pytest.mark.parametrize("kind", KEYS)
def test_each_kind_of_key_in_c2pa_signs(kind: str, authority: Authority, tmp_path: Path) -> None:
    signed = Signer(*authority.issue(tmp_path, KEYS[kind]())).sign(PNG, OutputFormat.PNG)
    assert read(signed, "image/png", authority)[0] == "Trusted"


def test_key_in_openssl_s_default_format_signs(authority: Authority, tmp_path: Path) -> None:
    key = KEYS["P-256"]()
    certificate, private = authority.issue(tmp_path, key)
    old = serialization.PrivateFormat.TraditionalOpenSSL
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, old, serialization.NoEncryption()))
    assert private.read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY")
    Signer(certificate, private)


@pytest.mark.parametrize("usage", ["1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"], ids=["documents", "claims"])
def test_certificates_for_documents_and_claims_sign(usage: str, authority: Authority, tmp_path: Path) -> None:
    signed = Signer(*authority.issue(tmp_path, KEYS["P-256"](), usage=usage)).sign(PNG, OutputFormat.PNG)
    # A validator trusts such certificates only by its configuration.
    assert read(signed, "image/png", authority, {"trust_config": usage})[0] == "Trusted"


class TestAnotherCertificate:
    def test_new_certificate_is_used_when_the_files_change(self, authority: Authority, tmp_path: Path) -> None:
        signs = Signer(*authority.issue(tmp_path, KEYS["P-256"](), seconds=1000))
        before = signs.expires
        authority.issue(tmp_path, KEYS["RSA"](), seconds=2000)
        signs.refresh()
        assert signs.expires == pytest.approx(before + 1000, abs=10)
        assert read(signs.sign(PNG, OutputFormat.PNG), "image/png", authority)[1]["signature_info"]["alg"] == "Ps256"

    @pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_text("garbage")], ids=["gone", "garbage"])
    def test_unusable_certificate_changes_nothing_and_is_logged_once(
        self, authority: Authority, tmp_path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        files = authority.issue(tmp_path, KEYS["P-256"]())
        signs = Signer(*files)
        change(files[0])
        for _ in range(3):
            signs.refresh()
            signs.check()
        assert read(signs.sign(PNG, OutputFormat.PNG), "image/png", authority)[0] == "Trusted"
        (complaint,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert complaint.startswith("the certificate stays as it was: IMG2IMG_C2PA_CERTIFICATE: ")

    def test_new_certificate_replaces_an_expired_one(
        self, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        signs = Signer(*authority.issue(tmp_path, KEYS["P-256"](), seconds=2))
        # The library itself minds only whole seconds.
        time.sleep(3.5)
        for _ in range(3):
            signs.refresh()
            assert not signs.able
        for call in (signs.check, lambda: signs.sign(PNG, OutputFormat.PNG)):
            with pytest.raises(SigningFailed, match="has to replace it"):
                call()
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
        authority.issue(tmp_path, KEYS["P-256"]())
        signs.refresh()
        assert signs.able
        assert read(signs.sign(PNG, OutputFormat.PNG), "image/png", authority)[0] == "Trusted"


class TestWhatCannotSign:
    def refused(self, certificate: Path | None, key: Path | None) -> str:
        with pytest.raises(Misconfigured) as error:
            signer(Settings(c2pa_certificate=certificate, c2pa_key=key))
        return str(error.value)

    def test_no_certificate_by_default(self) -> None:
        assert signer(Settings()) is None

    def test_one_file_without_the_other_is_refused(self, files: tuple[Path, Path]) -> None:
        for pair in ((files[0], None), (None, files[1])):
            assert "belong together" in self.refused(*pair)

    def test_missing_file_is_refused(self, files: tuple[Path, Path]) -> None:
        assert self.refused(files[0], Path("/nowhere.pem")).startswith("IMG2IMG_C2PA_KEY: /nowhere.pem cannot be read")
        assert self.refused(Path("/nowhere.pem"), files[1]).startswith("IMG2IMG_C2PA_CERTIFICATE: /nowhere.pem cannot")

    def test_key_of_another_certificate_is_refused(
        self, authority: Authority, files: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        _, other = authority.issue(tmp_path / "other", KEYS["P-256"]())
        assert "does not match the provided data or public key" in self.refused(files[0], other)

    def test_expired_certificate_is_refused(self, authority: Authority, tmp_path: Path) -> None:
        assert "has expired on 20" in self.refused(*authority.issue(tmp_path, KEYS["P-256"](), seconds=-1))

    def test_certificate_for_another_use_is_refused(self, authority: Authority, tmp_path: Path) -> None:
        message = self.refused(*authority.issue(tmp_path, KEYS["P-256"](), usage=None))
        assert "emailProtection, documentSigning" in message

    def test_file_without_a_certificate_is_refused(self, files: tuple[Path, Path]) -> None:
        for text in ("", "garbage"):
            files[0].write_text(text)
            assert "holds no certificate in PEM" in self.refused(*files)

    def test_message_is_one_line(self, authority: Authority, tmp_path: Path) -> None:
        for usage in (None, "1.3.6.1.4.1.311.10.3.12"):
            message = self.refused(*authority.issue(tmp_path, KEYS["P-256"](), usage=usage))
            assert "\n" not in message
            assert "self#" not in message

    def test_pipe_in_place_of_a_file_is_refused_at_once(self, files: tuple[Path, Path]) -> None:
        for file in files:
            file.unlink()
            os.mkfifo(file)
            assert "cannot be read: it is not a regular file" in self.refused(*files)

    def test_key_with_a_password_or_no_key_is_refused(self, files: tuple[Path, Path]) -> None:
        encrypted = serialization.BestAvailableEncryption(b"secret")
        pkcs8 = serialization.PrivateFormat.PKCS8
        files[1].write_bytes(KEYS["P-256"]().private_bytes(serialization.Encoding.PEM, pkcs8, encrypted))
        assert "no private key of a known kind in PEM without a password" in self.refused(*files)
        files[1].write_bytes(b"secret words")
        message = self.refused(*files)
        assert "no private key of a known kind in PEM without a password" in message
        assert "secret words" not in message

    def test_key_of_an_unknown_kind_is_refused(self, files: tuple[Path, Path]) -> None:
        made = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2", "-out", str(files[1])]
        subprocess.run(made, check=True, capture_output=True)
        assert "no private key of a known kind" in self.refused(*files)

    def test_key_of_a_kind_that_c2pa_lacks_is_refused(self, files: tuple[Path, Path]) -> None:
        pem, pkcs8, none = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        for key in (ec.generate_private_key(ec.SECP224R1()), ed448.Ed448PrivateKey.generate()):
            files[1].write_bytes(key.private_bytes(pem, pkcs8, none))
            assert "is of a kind that C2PA has not" in self.refused(*files)

    def test_error_without_the_library_says_how_to_install_it(
        self, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "c2pa", None)
        assert "pip install '.[c2pa]'" in self.refused(*files)

    @pytest.mark.parametrize(
        "command", [["serve"], ["edit", "picture.png", "--prompt", "x", "--local", "--model", "embedded"]]
    )
    def test_command_reports_it_in_one_line_and_starts_nothing(
        self, command: list[str], files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "picture.png").write_bytes(PNG)
        monkeypatch.setenv("IMG2IMG_C2PA_CERTIFICATE", str(files[0]))
        done = subprocess.run(
            [sys.executable, "-m", "app", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("img2img: IMG2IMG_C2PA_CERTIFICATE and IMG2IMG_C2PA_KEY belong")


def test_image_that_cannot_be_signed_is_not_made(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.time()
    certificate, key = authority.issue(tmp_path, KEYS["P-256"](), seconds=1000)
    with run_server(c2pa_certificate=certificate, c2pa_key=key) as url:
        expires = sample(url, "img2img_certificate_expiry_timestamp_seconds")
        assert start + 999 <= expires <= time.time() + 1000
        monkeypatch.setattr("app.imaging.c2pa.time", SimpleNamespace(time=lambda: expires))
        refused = post(url, PNG)
        assert (refused.status_code, refused.json()["code"]) == (500, "signing_failed")
        assert refused.headers["x-should-retry"] == "false"
        assert sample(url, 'img2img_rejected_total{reason="signing_failed"}') == 1
        assert (sample(url, "img2img_images_total"), sample(url, "img2img_ready")) == (0, 0)
        ready = httpx2.get(f"{url}/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "unsigned")
        assert httpx2.get(f"{url}/health-check").json()["status"] == "DEFUNCT"
        with Img2Img(url) as client:
            assert client.health() == {"status": "unsigned"}
        asked = [sys.executable, "-m", "app", "health", "--url", url]
        reported = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        assert (reported.returncode, "its certificate has expired" in reported.stderr) == (1, True)
        authority.issue(tmp_path, KEYS["P-256"]())
        eventually(lambda: httpx2.get(f"{url}/health/ready").is_success)
        assert post(url, PNG).is_success


def test_image_edited_without_a_service_is_signed(
    authority: Authority, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMG2IMG_C2PA_CERTIFICATE", str(files[0]))
    monkeypatch.setenv("IMG2IMG_C2PA_KEY", str(files[1]))
    edited = edit_here(PNG, {"prompt": "a wizard"}, Settings(devices="cpu"), FAKE)
    assert "sign" in edited.seconds
    assert read(edited.data, "image/png", authority)[0] == "Trusted"
