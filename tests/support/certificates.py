"""Certificates for signing, made with the library that others make theirs with."""

import datetime
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class Authority:
    """A root certificate; a client that trusts `pem` trusts what it issues."""

    key: ec.EllipticCurvePrivateKey
    pem: str

    @classmethod
    def new(cls) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _builder("Root", "Root", key, 86_400).add_extension(x509.BasicConstraints(True, None), True)
        signed = signed.add_extension(_usage("key_cert_sign"), True)
        return cls(key, signed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())

    def issue(
        self,
        folder: Path,
        key: CertificateIssuerPrivateKeyTypes,
        seconds: float = 3600,
        usage: str | None = "1.3.6.1.5.5.7.3.4",
    ) -> tuple[Path, Path]:
        """A certificate and its key as files. `usage` is what it may be used for; by default for e-mail."""
        builder = _builder("Ours", "Root", key, seconds).add_extension(x509.BasicConstraints(False, None), True)
        builder = builder.add_extension(_usage("digital_signature"), True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, False)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)]), False)
        certificate, private = folder / "certificate.pem", folder / "key.pem"
        certificate.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private


def _builder(
    subject: str, issuer: str, key: CertificateIssuerPrivateKeyTypes, seconds: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer_name=_name(issuer),
        subject_name=_name(subject),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(minutes=1),
        not_valid_after=now + datetime.timedelta(seconds=seconds),
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test")]
    )


def _usage(usage: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name == usage for name in _USAGES})


def read(
    file: bytes, media_type: str, authority: Authority, trust: dict[str, str] | None = None
) -> tuple[str, dict[str, Any]]:
    """What a validator says that trusts the authority: whether it does so, and the manifest."""
    trusting = c2pa.Context.from_dict(
        {"verify": {"verify_trust": True}, "trust": {"trust_anchors": authority.pem, **(trust or {})}}
    )
    reader = c2pa.Reader(media_type, io.BytesIO(file), context=trusting)
    return reader.get_validation_state(), reader.get_active_manifest()
