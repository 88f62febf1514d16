"""Forms (`multipart/form-data`, RFC 7578), parsed while they arrive: only the parts are held, never the whole body."""

from io import BytesIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import MalformedBody, UnsupportedMediaType
from app.web.fields import unique

_MAX_TEXT_BYTES = 64 * 1024
_MAX_FIELDS = 40
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii")

_ONE_FILE = "Send one image, as the part 'image': every part with a file name is a file."
AS_FILE = "Send the image as a file part named 'image', like curl's -F image=@photo.png."


class _Parts:
    """Collects the parts of a form from the callbacks of python-multipart's parser.

    Attributes:
        items: names and contents in their order: bytes of a file, text of a field.
        begun: whether the first boundary has come.
        complete: whether the last boundary has come.
    """

    def __init__(self, boundary: bytes, max_files: int) -> None:
        self.items: list[tuple[str, bytes | str]] = []
        self.begun = False
        self.complete = False
        self._max_files = max_files
        self._files = 0
        self._fields = 0
        self._reset()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._complete,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes of the body. Raises `MalformedBody`, or python-multipart's `FormParserError`."""
        self._parser.write(chunk)

    def _begin(self) -> None:
        self.begun = True
        self._reset()

    def _reset(self) -> None:
        self._head: dict[bytes, bytes] = {}
        self._header = (b"", b"")
        self._name, self._is_file = "", False
        # Not a list: of carriage returns, the parser makes one chunk for each byte.
        self._content = BytesIO()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _header_end(self) -> None:
        name, value = self._header
        self._head[name.lower()] = value
        self._header = (b"", b"")

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._head.get(b"content-disposition", b""))
        if b"name" not in options:
            raise _unreadable('The Content-Disposition header field "name" must be provided.')
        self._name = _text(options[b"name"])
        self._is_file = b"filename" in options
        if self._is_file:
            self._files += 1
            if self._files > self._max_files:
                raise _unreadable(f"Too many files. Maximum number of files is {self._max_files}. {_ONE_FILE}")
            return
        self._fields += 1
        if self._fields > _MAX_FIELDS:
            raise _unreadable(f"Too many fields. Maximum number of fields is {_MAX_FIELDS}.")
        _, options = parse_options_header(self._head.get(b"content-type", b""))
        if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
            raise _unreadable(f"The charset of the part '{self._name[:64]}' must be utf-8.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content.write(data[start:end])
        if not self._is_file and self._content.tell() > _MAX_TEXT_BYTES:
            name = self._name[:64]
            raise MalformedBody(
                f"The text of the part '{name}' is longer than the {_MAX_TEXT_BYTES // 1024} KiB that a text part may "
                f"have. {AS_FILE if name == 'image' else 'Send a shorter one.'}",
                param=name,
            )

    def _end(self) -> None:
        data = self._content.getvalue()
        self._content = BytesIO()
        if self._is_file:
            self.items.append((self._name, data))
            return
        try:
            self.items.append((self._name, data.decode()))
        except UnicodeDecodeError as error:
            # Of an image as text, the route has a better error message.
            if self._name != "image":
                raise _unreadable(f"The text of the part '{self._name[:64]}' is not in UTF-8.") from error
            self.items.append((self._name, data.decode("latin-1")))

    def _complete(self) -> None:
        self.complete = True


async def read_form(request: Request, max_files: int = 1) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files and the text fields of a form, by their names.

    A form that is refused is received to its end: a client that still sends does not read the answer.

    Raises:
        InvalidParameter: a name comes twice.
        MalformedBody: it is not a form, is incomplete, or has text that is not in UTF-8.
        UnsupportedMediaType: its Content-Type is another one.
        ClientDisconnect: the client has disconnected.
    """
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise UnsupportedMediaType(f"Send multipart/form-data. {AS_FILE}")
    stream = request.stream()
    try:
        parts = _started(content_type, max_files)
        async for chunk in stream:
            parts.write(chunk)
    except (MalformedBody, FormParserError) as error:
        async for _ in stream:
            pass
        if isinstance(error, MalformedBody):
            raise
        raise (_unreadable("Invalid multipart data.") if parts.begun else _incomplete()) from error
    if not parts.complete:
        raise _incomplete()
    found = unique(parts.items)
    files = {name: part for name, part in found.items() if isinstance(part, bytes)}
    return files, {name: part for name, part in found.items() if isinstance(part, str)}


def _started(content_type: str, max_files: int) -> _Parts:
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise MalformedBody("The form's charset must be utf-8: leave it out of the Content-Type.")
    if not options.get(b"boundary"):
        raise MalformedBody(
            "The Content-Type of the form has no boundary. Let the HTTP library set this header, which names one."
        )
    try:
        return _Parts(options[b"boundary"], max_files)
    except FormParserError as error:
        # The boundary is too long.
        raise _unreadable("Invalid multipart data.") from error


def _incomplete() -> MalformedBody:
    return MalformedBody("The form's last boundary is missing: it was cut short on its way, or is no form.")


def _unreadable(reason: str) -> MalformedBody:
    return MalformedBody(f"The form cannot be read: {reason}")


def _text(data: bytes) -> str:
    """A name in UTF-8, or else in Latin-1, as old clients send it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
