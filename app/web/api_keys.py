"""The API keys of the settings, and the check of a request's key."""

import base64
import binascii
import hashlib
import hmac
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from app import watched_files
from app.errors import Misconfigured
from app.settings import Settings
from app.watched_files import Watched

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[!-+\--~]+", re.ASCII)
"""The characters that a header can hold, without the comma."""

_BEARER = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)
_BASIC = re.compile(rb"basic +(\S+) *", re.IGNORECASE)


class ApiKeys:
    """The keys of `IMG2IMG_API_KEYS` and of `IMG2IMG_API_KEYS_FILE`, kept as SHA-256 digests.

    `refresh` reads the file again when it has changed, so that keys are exchanged without a restart. If it cannot be
    read then, or holds none, the previous keys stay.

    Raises:
        Misconfigured: the file cannot be read or holds no key, or a key holds what no header can carry.
    """

    def __init__(self, settings: Settings) -> None:
        listed = settings.api_keys.get_secret_value()
        self._fixed = _digests(listed.split(","), "IMG2IMG_API_KEYS")
        if listed and not self._fixed:
            raise Misconfigured("IMG2IMG_API_KEYS holds no key: give one, or leave it out for a service without keys.")
        self._file = settings.api_keys_file
        self._of_file: tuple[bytes, ...] = ()
        self._broken = False
        if self._file:
            self._watched = Watched(self._file)
            self._of_file = _read(self._file)

    def __bool__(self) -> bool:
        """Whether requests need a key."""
        return bool(self._fixed or self._file)

    def find(self, sent: bytes) -> str | None:
        """A name for the key, which does not reveal it; None if it is none of the keys.

        Every key is compared in full, so that the time it takes says nothing.
        """
        digest = hashlib.sha256(sent).digest()
        found = [known for known in (*self._fixed, *self._of_file) if hmac.compare_digest(known, digest)]
        return found[0].hex()[:12] if found else None

    def refresh(self) -> None:
        """Read the file again if it has changed. It does file work: call it on a thread."""
        if not self._file or not self._watched.changed(again=self._broken):
            return
        try:
            self._of_file = _read(self._file)
            self._broken = False
            logger.info("%d API keys were read again", len(self._of_file))
        except Misconfigured as error:
            self._broken = True
            logger.error("the API keys stay as they were: %s", error)


def sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key in a request's headers: `Authorization: Bearer`, `X-API-Key`, or the password of `Authorization: Basic`.

    None if there is none.
    """
    values = dict(headers)
    if key := values.get(b"x-api-key"):
        return key
    authorization = values.get(b"authorization", b"")
    if bearer := _BEARER.fullmatch(authorization):
        return bearer[1]
    if basic := _BASIC.fullmatch(authorization):
        try:
            return base64.b64decode(basic[1], validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return None


def _read(file: Path) -> tuple[bytes, ...]:
    """Digests of a file's keys, one on each line. Empty lines and lines that begin with # are skipped."""
    try:
        # Some editors write a byte order mark.
        text = watched_files.read(file, "IMG2IMG_API_KEYS_FILE").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Misconfigured(f"IMG2IMG_API_KEYS_FILE: {file} cannot be read: {error}.") from error
    lines = [line.strip() for line in text.splitlines()]
    keys = _digests((line for line in lines if not line.startswith("#")), f"IMG2IMG_API_KEYS_FILE: {file}")
    if not keys:
        raise Misconfigured(f"IMG2IMG_API_KEYS_FILE: {file} holds no key. Write one on each line.")
    return keys


def _digests(keys: Iterable[str], where: str) -> tuple[bytes, ...]:
    found = [key.strip() for key in keys if key.strip()]
    if any(not _KEY.fullmatch(key) for key in found):
        raise Misconfigured(f"{where}: a key may hold ASCII letters, digits and signs, but no space and no comma.")
    return tuple(hashlib.sha256(key.encode("ascii")).digest() for key in found)
