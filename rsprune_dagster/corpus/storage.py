"""The few file operations that a corpus needs, on local disk or any fsspec URL.

A local uri is an absolute path; everything else is a URL (`s3://bucket/key`, `memory://name`). In the tables of a
project, paths inside the project are relative to it, so that a clone elsewhere has the same tables.

**Escaping.** Tables hold text, but a name on disk or in a tar can be any bytes. So tables hold *escaped* names: a
byte that is not UTF-8, and each byte of a control character or line separator, is written `\\xNN` (lower-case
hexadecimal digits); a backslash before `xNN` is written `\\x5c`. All other names are unchanged. `unescaped_name`
restores the name.
"""

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

MISSING = "missing"
"""The stamp of a broken or circular link, and of a file that vanished during the listing."""

SPECIAL = "special"
"""The stamp of a pipe, socket or device, which may block when read."""

GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""Error numbers for a missing file or a broken link."""

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_ESCAPED = re.compile(r"\\x(?=[0-9a-f]{2})")
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


_CONNECTION_ERRORS = frozenset(
    {"ClientConnectionError", "ClientPayloadError", "EndpointConnectionError", "HTTPClientError"}
)
"""Connection errors of aiohttp and botocore, which cause the errors of fsspec's filesystems."""


class NotRegularError(OSError):
    """A pipe, socket or device instead of a regular file."""


class Entry(NamedTuple):
    """A child of a folder."""

    name: str
    uri: str
    is_folder: bool


def is_remote(uri: str) -> bool:
    """Whether the uri is a URL, to be read by fsspec."""
    return "://" in uri


def absolute(source: str) -> str:
    """The uri of a source given by the user: `file://` and relative paths become absolute local paths."""
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    return source.rstrip("/") if is_remote(source) else os.path.abspath(os.path.expanduser(source))


def escaped_name(name: str) -> str:
    """Escape a name, path or uri for a table: UTF-8 on one line; see the module docstring."""
    if name.isascii() and name.isprintable() and "\\x" not in name:  # fast path for most tiles
        return name
    safe = _ESCAPED.sub(r"\\x5cx", name)
    return "".join(
        _hexadecimal(character) if unicodedata.category(character) in _ESCAPED_CATEGORIES else character
        for character in safe
    )


def _hexadecimal(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def unescaped_name(text: str) -> str:
    """The inverse of `escaped_name`."""
    if "\\x" not in text:
        return text
    true = _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return true.decode("utf-8", "surrogateescape")


def is_unreachable(error: BaseException | None) -> bool:
    """Whether a filesystem error means that the server was unreachable or failed."""
    if error is None or isinstance(error, FileNotFoundError | PermissionError):
        return False
    status = getattr(error, "status", None)  # HTTP status code
    if isinstance(status, int):
        return status >= 500
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(names & _CONNECTION_ERRORS)


def located(uri: str, base: str) -> str:
    """The real path of a table's uri, which is escaped and may be relative to the folder `base`."""
    true = unescaped_name(uri)
    return true if is_remote(true) else os.path.join(base, true)


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path in it."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def is_folder(uri: str) -> bool:
    """Whether the uri is a folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not is_remote(uri):
        return stat.S_ISDIR(Path(uri).stat().st_mode)
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # a long-lived process may have cached an older listing
    return bool(fs.info(path)["type"] == "directory")


def entries(uri: str) -> list[Entry]:
    """The children of a folder, sorted by name. Links are followed; a broken link counts as a file."""
    if not is_remote(uri):
        with os.scandir(uri) as found:
            return sorted(Entry(each.name, each.path, _leads_to_folder(each)) for each in found)
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    children = [(info["name"].rstrip("/"), info["type"] == "directory") for info in fs.ls(path, detail=True)]
    own = path.rstrip("/")  # S3 lists a folder's empty placeholder object as its own child
    return sorted(
        Entry(name.rsplit("/", 1)[-1], fs.unstrip_protocol(name), folder) for name, folder in children if name != own
    )


def stamps(uri: str) -> list[tuple[str, str]]:
    """Name and stamp (as `size_and_etag`) of the files in a folder, sorted; one request for a remote folder."""
    if not is_remote(uri):
        with os.scandir(uri) as found:
            return sorted((each.name, size_and_etag(each.path)[1]) for each in found if not _leads_to_folder(each))
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    files = [info for info in fs.ls(path, detail=True) if info["type"] != "directory"]
    return sorted((info["name"].rsplit("/", 1)[-1], f"{info['size']}-{_version(info)}") for info in files)


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in GONE:  # a link to itself
            return False
        raise


def real_path(uri: str) -> str:
    """The resolved path of a folder, to detect circular links."""
    return uri if is_remote(uri) else os.path.realpath(uri)


def size_and_etag(uri: str) -> tuple[int | None, str]:
    """Size of a file, and a text that changes with its content: size with modification time or etag.

    The text is MISSING or SPECIAL for a file that cannot be read.
    """
    try:
        if not is_remote(uri):
            status = os.stat(uri)
            regular = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            return (status.st_size, f"{status.st_size}-{status.st_mtime_ns}") if regular else (None, SPECIAL)
        fs, path = filesystem(uri)
        info = fs.info(path)
        return info["size"], f"{info['size']}-{_version(info)}"
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in GONE:
            return None, MISSING
        raise


def _version(info: Mapping[str, Any]) -> str:
    names = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
    return next((str(info[name]).strip('"') for name in names if info.get(name)), "")


def open_binary(uri: str) -> IO[bytes]:
    """A seekable binary file; a remote one reads ahead in large blocks."""
    if not is_remote(uri):
        return os.fdopen(open_regular(uri)[0], "rb")
    fs, path = filesystem(uri)
    handle: IO[bytes] = fs.open(path, "rb", cache_type="readahead", block_size=4 << 20)
    return handle


def open_regular(path: str) -> tuple[int, int]:
    """Open a local file without blocking; returns its descriptor and size in bytes.

    Raises:
        NotRegularError: it is a pipe, socket or device.
        OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EOPNOTSUPP, errno.ENODEV):  # a socket, or a device without a driver
            raise NotRegularError(error.errno, "not a regular file", path) from error
        raise
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise NotRegularError(errno.ENODEV, "not a regular file", path)
