"""Files behind an address, read in ranges through fsspec.

What an address may be is decided here: a short list of schemes, no password and no signature in it (it is kept in the
plan and shown in messages; credentials belong into the environment of the storage client), and no redirect to where
only this machine can reach. A failure that may pass is tried again a few times; no message carries more of an address
than the user typed, since what a server redirects to may be signed.
"""

import contextlib
import hashlib
import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError, UsageError
from stages.files.streams import stream_of

SCHEMES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}
"""Scheme of an address -> the package that fsspec needs for it."""

_WEB = ("http", "https")
_BLOCK_BYTES = 4 << 20
_WAITS_SECONDS = (0.5, 2.0, 8.0)
_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 30
_REQUEST_SECONDS = 300
_METADATA_NAMES = ("metadata.google.internal", "metadata", "instance-data")
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_GONE, _FORBIDDEN = (404, 410), (401, 403)
_VERSION_KEYS = ("ETag", "etag", "generation", "Last-Modified", "LastModified", "last_modified", "mtime", "blob_id")

Result = TypeVar("Result")


class _RedirectRefused(Exception):
    """A server sends us to where we do not go."""


def check_address(uri: str) -> None:
    """Raises `UsageError` for an address that carries credentials or leads to a machine's metadata service."""
    try:
        address = urlsplit(uri)
    except ValueError:
        raise UsageError("the host of a source's address cannot be read: write SCHEME://HOST/PATH") from None
    if "@" in address.netloc:
        raise UsageError(
            f"a source at {address.scheme}: has a user name or password in its address, which would end up in plans "
            "and messages: leave it out and give credentials to the storage client (environment, profile or .netrc)"
        )
    if address.query or address.fragment:
        raise UsageError(
            f"a source at {address.scheme}: has a query or signature in its address, which would end up in plans and "
            "messages: name the file without it and give credentials to the storage client"
        )
    if not address.netloc:
        raise UsageError(f"{uri!r} names no host or bucket: write {address.scheme}://HOST/PATH")
    if address.scheme in _WEB and _is_link_local(address.hostname or ""):
        raise UsageError(f"{address.hostname} is a machine's own metadata service, not a source: it is never read")


def listed(pattern: str) -> list[str]:
    """Returns the addresses that match a pattern with glob characters, sorted.

    Raises:
        UsageError: a web server, which cannot be asked what it holds; or nothing matches.
        EnvironmentProblem, RefusedError: the store does not answer, or refuses.
    """
    scheme = pattern.partition("://")[0]
    if scheme in _WEB:
        raise UsageError(f"a web server cannot be listed: name the files of {pattern} with braces, as in {{000..099}}")
    filesystem = _filesystem(scheme)
    found = sorted(_tried(pattern, lambda: filesystem.glob(pattern)))
    if not found:
        raise UsageError(f"no file matches {pattern}: check the pattern")
    return [filesystem.unstrip_protocol(path) for path in found]


@contextlib.contextmanager
def remote_file(uri: str) -> Iterator["RemoteFile"]:
    """Opens the file at an address that a plan names.

    Raises:
        MismatchError: it is not there (any more).
        RefusedError: the server gives no ranges, or redirects to where only this machine can reach.
        EnvironmentProblem: the server does not answer or refuses us, or a package is missing.
    """
    file = RemoteFile(uri)
    try:
        yield file
    finally:
        file.close()


def remote_state(uri: str) -> dict[str, int]:
    """Returns size and version of a file as numbers; {} where the server tells no version. Errors as `remote_file`."""
    about = _info(uri)
    version = next((str(about[key]) for key in _VERSION_KEYS if about.get(key)), "")
    if not version or about.get("size") is None:
        return {}
    # 53 bits, which every JSON reader keeps.
    digest = hashlib.blake2b(version.encode(), digest_size=8).digest()
    return {"size_bytes": int(about["size"]), "version": int.from_bytes(digest, "little") >> 11}


class RemoteFile:
    """An open file behind an address; see `stages.files.opened.SourceFile`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        about = _info(uri)
        if about.get("size") is None or about.get("partial") is False:
            raise RefusedError(f"the server of {uri} does not give parts of a file: fetch it first, then name its path")
        self.size_bytes = int(about["size"])
        self._file: Any = None
        self._has_read = False

    def read_at(self, offset_bytes: int, size_bytes: int) -> bytes:
        size_bytes = max(0, min(size_bytes, self.size_bytes - offset_bytes))
        if size_bytes == 0:
            return b""
        data = _tried(self._uri, lambda: self._read(offset_bytes, size_bytes), before_again=self.close)
        if len(data) < size_bytes:
            raise MismatchError(
                f"{self._uri} gave {len(data):,} of {size_bytes:,} bytes at offset {offset_bytes:,}: it changed while "
                "it was read; run again"
            )
        return data

    def stream(self, offset_bytes: int = 0) -> BinaryIO:
        return stream_of(self.read_at, self.size_bytes, offset_bytes)

    def close(self) -> None:
        """Ends the connection; the next read opens another."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, offset_bytes: int, size_bytes: int) -> bytes:
        # Whoever wants one payload asks once, and need not be sent what follows it.
        cache_type = "readahead" if self._has_read else "none"
        if self._file is None or self._file.cache.name != cache_type:
            self.close()
            filesystem = _filesystem(self._uri.partition("://")[0])
            self._file = filesystem.open(self._uri, "rb", block_size=_BLOCK_BYTES, cache_type=cache_type)
        self._file.seek(offset_bytes)
        data = bytes(self._file.read(size_bytes))
        self._has_read = True
        return data


def _info(uri: str) -> dict[str, Any]:
    check_address(uri)
    filesystem = _filesystem(uri.partition("://")[0])
    about = _tried(uri, lambda: filesystem.info(uri))
    if about.get("type") not in (None, "file"):
        raise UsageError(f"{uri} is a {about['type']}, not a file: name its files, as in {uri.rstrip('/')}/*.tar")
    return dict(about)


def _filesystem(scheme: str) -> Any:
    """Returns fsspec's client for `scheme`; raises `EnvironmentProblem` when its package is missing."""
    import fsspec

    options: dict[str, Any] = {}
    try:
        if scheme in _WEB:
            # No compression on the way: it would hide how many bytes a range has.
            options = {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": _web_client()}
        return fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        package = SCHEMES[scheme]
        raise EnvironmentProblem(f"{scheme}:// is read through {package} ({error}): pip install {package}") from error


def _web_client() -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
    guard = aiohttp.TraceConfig()
    guard.on_request_redirect.append(_judge_redirect)
    return {"timeout": timeout, "trace_configs": [guard], "trust_env": True}


async def _judge_redirect(session: Any, context: Any, params: Any) -> None:
    """Raises for a redirect away from the web, or from one machine to an address that only we may reach."""
    from yarl import URL

    target = params.url.join(URL(params.response.headers.get("Location", "")))
    if target.scheme not in _WEB or (params.url.scheme == "https" and target.scheme == "http"):
        raise _RedirectRefused(f"to {target.scheme}:")
    if target.host != params.url.host and not _is_public(target.host or ""):
        raise _RedirectRefused("to an address of a private network")


def _is_public(host: str) -> bool:
    addresses = _addresses_of(host)
    return bool(addresses) and all(address.is_global for address in addresses)


def _is_link_local(host: str) -> bool:
    return host.lower() in _METADATA_NAMES or any(address.is_link_local for address in _literal(host))


def _literal(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    with contextlib.suppress(ValueError):
        return [ipaddress.ip_address(host)]
    with contextlib.suppress(OSError):
        # Also the spellings that only a C library takes for an address, such as 0xA9FEA9FE or 169.254.43518.
        return [ipaddress.ip_address(socket.inet_aton(host))]
    return []


def _addresses_of(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if literal := _literal(host):
        return literal
    try:
        return [ipaddress.ip_address(str(found[4][0]).partition("%")[0]) for found in socket.getaddrinfo(host, None)]
    except OSError:
        return []


def _tried(uri: str, ask: Callable[[], Result], *, before_again: Callable[[], None] | None = None) -> Result:
    """Returns what `ask` gives, asking again a few times while the failure is one that may pass."""
    for wait in (*_WAITS_SECONDS, None):
        try:
            return ask()
        except _client_errors() as error:
            problem = _problem(uri, error)
            if not isinstance(problem, EnvironmentProblem) or wait is None or _status_of(error) in _FORBIDDEN:
                # Not `from error`: its text may carry the signed address of a redirect.
                raise problem from None
        if before_again is not None:
            before_again()
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _problem(uri: str, error: BaseException) -> EnvironmentProblem | RefusedError:
    status = _status_of(error)
    chain = list(_chain(error))
    refused = next((e for e in chain if isinstance(e, _RedirectRefused)), None)
    if refused is not None:
        return RefusedError(f"the server of {uri} redirects {refused}, which is not followed: name the file itself")
    if any("range requests" in str(e) for e in chain if isinstance(e, ValueError)):
        return RefusedError(f"the server of {uri} does not give parts of a file: fetch it first, then name its path")
    kinds = {type(e).__name__ for e in chain}
    if status in _FORBIDDEN or "PermissionError" in kinds:
        said = f" (status {status})" if status else ""
        return EnvironmentProblem(f"{uri} may not be read{said}: give the storage client valid credentials, run again")
    # A client that cannot connect may say that the file is not there; what it wraps tells the two apart.
    if status in _GONE or (status is None and kinds <= {"FileNotFoundError", "NoSuchKey", "ClientError"}):
        return MismatchError(f"{uri} is not there: check the address, or restore the file and run again")
    said = f"status {status}" if status else type(chain[-1]).__name__
    return EnvironmentProblem(
        f"{uri} cannot be read ({said}, {len(_WAITS_SECONDS) + 1} attempts): check the network and run again to resume"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _status_of(error: BaseException) -> int | None:
    """Returns the HTTP status behind an error, if there is one."""
    for found in _chain(error):
        named = (getattr(found, name, None) for name in ("status", "status_code") if hasattr(found, name))
        for value in named:
            if isinstance(value, int) and 300 <= value < 600:
                return value
    return None


def _client_errors() -> tuple[type[BaseException], ...]:
    """Returns what the clients that are loaded raise when a request fails."""
    found: list[type[BaseException]] = [OSError, ValueError, TimeoutError, _RedirectRefused]
    for module, name in (
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("azure.core.exceptions", "AzureError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)
