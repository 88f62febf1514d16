"""Signs image files by the operator's certificate, as the C2PA specification says (Content Credentials).

Its library is an extra, `c2pa`, and is only imported where there is a certificate.
"""

import json
import logging
import re
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from app import __version__, watched_files
from app.errors import Misconfigured, SigningFailed
from app.imaging.encode import DIGITAL_SOURCE_TYPE, Marks, encode_preview
from app.pixels import OutputFormat, Pixels
from app.settings import Settings
from app.watched_files import Watched

_UPLOAD = "xmp.iid:upload"
_MANIFEST = json.dumps(
    {
        "claim_generator_info": [{"name": "sdxl-turbo-img2img", "version": __version__}],
        # Only that there was an upload: none of its bytes go into the result.
        "ingredients": [{"title": "uploaded image", "relationship": "parentOf", "instance_id": _UPLOAD}],
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {
                    "actions": [
                        {"action": "c2pa.opened", "parameters": {"ingredientIds": [_UPLOAD]}},
                        {"action": "c2pa.edited", "digitalSourceType": DIGITAL_SOURCE_TYPE},
                    ]
                },
            }
        ],
    }
)
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}

_USAGES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
"""Extended key usages of a signer's certificate: emailProtection, documentSigning and C2PA's claimSigning."""

_PROFILE = (
    "It has to be valid now and for signing: digitalSignature, and one of emailProtection, documentSigning and C2PA's "
    "claimSigning as its extended usage"
)
_EXPIRED = "No image can be signed: the certificate has expired. The operator of the service has to replace it."
_URI = re.compile(r" ?\(self#\S*\)")

logger = logging.getLogger(__name__)


class Signer:
    """Signs files: that they were made from an uploaded image by generative AI, and by which certificate.

    The two files are read again when they change. If the new ones cannot be used, the previous certificate signs until
    it expires.

    Args:
        certificate: a PEM file: the signer's certificate first, then the certificates that issued it.
        key: a PEM file without a password: the certificate's private key, of ECDSA, RSA or Ed25519.

    Attributes:
        expires: the end of the certificate's validity, in seconds of Unix time.

    Raises:
        Misconfigured: they cannot be used together; the message says why.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        try:
            import c2pa
        except ImportError as error:
            raise Misconfigured(
                "IMG2IMG_C2PA_CERTIFICATE: signing needs the package c2pa-python. Install the extra: "
                "pip install '.[c2pa]' in the checkout, or build the image with EXTRA=c2pa."
            ) from error
        self._library = c2pa
        self._files = certificate, key
        self._context = c2pa.Context.from_dict(
            {"builder": {"thumbnail": {"enabled": False}}, "trust": {"trust_config": "\n".join(_USAGES)}}
        )
        self._watched = Watched(certificate, key)
        self._complaint = ""
        self._signer, self.expires = self._load()

    def refresh(self) -> None:
        """Read the files again if they have changed. Reads files and signs a test image: call it on a thread."""
        if not self._watched.changed(again=bool(self._complaint) or not self.able):
            return
        try:
            self._signer, self.expires = self._load()
            self._complaint = ""
        except Misconfigured as error:
            if str(error) != self._complaint:
                logger.error("the certificate stays as it was: %s", error)
            self._complaint = str(error)

    def check(self) -> None:
        """See that an image could be signed now, before there is one.

        Raises:
            SigningFailed: the certificate has expired, and there is no other.
        """
        if not self.able:
            raise SigningFailed(_EXPIRED)

    @property
    def able(self) -> bool:
        """Whether an image could be signed now. Compares times only: neither `refresh` nor any file work."""
        return time.time() < self.expires

    def sign(self, file: bytes, output_format: OutputFormat) -> bytes:
        """The same image with a signed manifest in it: some 3 KB more. Takes milliseconds; any thread may call it.

        Raises:
            SigningFailed: the certificate has expired since it was checked.
        """
        try:
            return self._signed(self._signer, file, output_format.media_type)
        except self._library.C2paError as error:
            raise SigningFailed(_EXPIRED) from error

    def _signed(self, by: Any, file: bytes, media_type: str) -> bytes:
        signed = BytesIO()
        self._library.Builder(_MANIFEST, context=self._context).sign(by, media_type, BytesIO(file), signed)
        return signed.getvalue()

    def _load(self) -> tuple[Any, float]:
        """The library's signer, after it has signed a test image, and its expiry: what is wrong is found here."""
        certificate, key = self._files
        chain, expires = _certificates(certificate)
        algorithm, private_key = _private_key(key)
        info = self._library.C2paSignerInfo(alg=algorithm, sign_cert=chain, private_key=private_key, ta_url=None)
        try:
            by = self._library.Signer.from_info(info)
            self._signed(by, encode_preview(Pixels(1, 1, bytes(3)), OutputFormat.PNG, Marks()), "image/png")
        except self._library.C2paError as error:
            # Without the addresses within the test image.
            words = " ".join(_URI.sub("", str(error)).split())
            message = f"IMG2IMG_C2PA_CERTIFICATE: {certificate} cannot sign: {words}. {_PROFILE}."
            raise Misconfigured(message) from error
        logger.info("images are signed by %s", certificate)
        return by, expires


def signer(settings: Settings) -> Signer | None:
    """The signer of the settings; None if they name no certificate.

    Raises:
        Misconfigured: as `Signer`, or there is only one of the two files.
    """
    if settings.c2pa_certificate and settings.c2pa_key:
        return Signer(settings.c2pa_certificate, settings.c2pa_key)
    if settings.c2pa_certificate or settings.c2pa_key:
        raise Misconfigured("IMG2IMG_C2PA_CERTIFICATE and IMG2IMG_C2PA_KEY belong together: set both, or none.")
    return None


def _certificates(file: Path) -> tuple[bytes, float]:
    """The bytes of the file, and when the first certificate in it expires."""
    from cryptography.x509 import load_pem_x509_certificates

    chain = watched_files.read(file, "IMG2IMG_C2PA_CERTIFICATE")
    try:
        first, *_ = load_pem_x509_certificates(chain)
    except ValueError as error:
        raise Misconfigured(f"IMG2IMG_C2PA_CERTIFICATE: {file} holds no certificate in PEM.") from error
    expires = first.not_valid_after_utc
    if expires.timestamp() <= time.time():
        raise Misconfigured(f"IMG2IMG_C2PA_CERTIFICATE: {file} has expired on {expires:%Y-%m-%d at %H:%M} UTC.")
    return chain, expires.timestamp()


def _private_key(file: Path) -> tuple[bytes, bytes]:
    """Its algorithm, by C2PA's name, and the key as PKCS #8 in PEM."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

    try:
        key = load_pem_private_key(watched_files.read(file, "IMG2IMG_C2PA_KEY"), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The library's own message would be about ASN.1.
        raise Misconfigured(
            f"IMG2IMG_C2PA_KEY: {file} is no private key of a known kind in PEM without a password."
        ) from error
    algorithm = None
    if isinstance(key, EllipticCurvePrivateKey):
        algorithm = _CURVES.get(key.curve.name)
    elif isinstance(key, RSAPrivateKey):
        algorithm = "ps256"
    elif isinstance(key, Ed25519PrivateKey):
        algorithm = "ed25519"
    if algorithm is None:
        raise Misconfigured(
            f"IMG2IMG_C2PA_KEY: {file} is of a kind that C2PA has not: take ECDSA P-256, RSA or Ed25519."
        )
    return algorithm.encode(), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
