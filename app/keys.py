"""API keys: where they come from, and whether one that was sent is among them."""

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path

from app.errors import Misconfigured
from app.settings import Settings

logger = logging.getLogger(__name__)

_RECHECK_SECONDS = 1.0
_KEY = re.compile(r"[!-+\--~]+", re.ASCII)
"""What a header can carry, without the comma."""

_BEARER = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)
_BASIC = re.compile(rb"basic +(\S+) *", re.IGNORECASE)


class Keys:
    """The keys of `IMG2IMG_API_KEYS` and of `IMG2IMG_API_KEYS_FILE`, kept as SHA-256 digests.

    The file is read again when it changes, so that keys are exchanged without a restart. If it cannot be read then, or
    holds none, those that were there stay.

    Raises:
        Misconfigured: the file cannot be read or holds no key, or a key holds what no header can carry.
    """

    def __init__(self, settings: Settings) -> None:
        listed = settings.api_keys.get_secret_value()
        self._fixed = _digests(listed.split(","), "IMG2IMG_API_KEYS")
        if listed and not self._fixed:
            raise Misconfigured("IMG2IMG_API_KEYS holds no key: give one, or leave it out to let anybody in.")
        self._file = settings.api_keys_file
        self._of_file: tuple[bytes, ...] = ()
        self._stamp: tuple[int, ...] = ()
        self._checked = 0.0
        if self._file:
            self._stamp, self._of_file = _read(self._file)
            self._checked = time.monotonic()

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._fixed or self._file)

    def find(self, sent: bytes) -> str | None:
        """A name for the key that was sent, which does not give it away; None if it is none of them.

        Every key is compared in full, so that the time it takes says nothing.
        """
        self._refresh()
        digest = hashlib.sha256(sent).digest()
        found = [known for known in (*self._fixed, *self._of_file) if hmac.compare_digest(known, digest)]
        return found[0].hex()[:12] if found else None

    def _refresh(self) -> None:
        now = time.monotonic()
        if not self._file or now - self._checked < _RECHECK_SECONDS:
            return
        self._checked = now
        try:
            if _stamp(self._file) != self._stamp:
                self._stamp, self._of_file = _read(self._file)
                logger.info("%d API keys were read again", len(self._of_file))
        except (OSError, Misconfigured) as error:
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


def _read(file: Path) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    """A file's stamp, and digests of its keys, one a line; empty lines, and those that begin with #, do not count."""
    try:
        # Before the content: what changes in between is seen at the next look.
        stamp = _stamp(file)
        if not file.is_file():
            # To read a pipe would wait for its other end.
            raise OSError("it is no regular file")
        # Some editors mark UTF-8 at its beginning.
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise Misconfigured(f"IMG2IMG_API_KEYS_FILE: {file} cannot be read: {error}.") from error
    keys = _digests((line for line in lines if not line.startswith("#")), f"IMG2IMG_API_KEYS_FILE: {file}")
    if not keys:
        raise Misconfigured(f"IMG2IMG_API_KEYS_FILE: {file} holds no key. Write one on each line.")
    return stamp, keys


def _digests(keys: Iterable[str], where: str) -> tuple[bytes, ...]:
    found = [key.strip() for key in keys if key.strip()]
    if any(not _KEY.fullmatch(key) for key in found):
        raise Misconfigured(f"{where}: a key may hold ASCII letters, digits and signs, but no space and no comma.")
    return tuple(hashlib.sha256(key.encode("ascii")).digest() for key in found)


def _stamp(file: Path) -> tuple[int, ...]:
    """Changes with the file's content, also where it is replaced behind a link, as orchestrators do it."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
