"""Bytes from outside, under one policy: paths, URLs, data URIs and bytes become bounded `bytes`.

Everything that opens a file or a socket for a picture or a video is in this file. The rules:

- a size is checked before anything is read, and again while reading;
- a URL is resolved once, only addresses the policy allows are connected to, and the name is not resolved again
  (a name that changes its address between check and use gains nothing); each redirect passes the same checks;
- proxies of the environment are not used, and no cookies, credentials or query strings appear in messages.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import numbers
import os
import re
import socket
import ssl
import stat
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import cut, is_number, message, shorten


Source = str | os.PathLike | bytes | bytearray | memoryview
Address = tuple[int, tuple]  # a socket's family, and where it connects to

MIB = 2**20
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK_BYTES = 256 * 1024
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")  # two letters or more: `C:\...` is a path
_WHITESPACE = re.compile(r"\s+")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class MediaPolicy:
    """What may be fetched and decoded. Immutable; `dataclasses.replace(policy, ...)` makes a changed copy.

    Raises `ValueError` naming the field when a value is impossible.
    """

    max_bytes: int = 256 * MIB  # bytes read into memory for one item; a local video opened in place may be larger
    max_pixels: int = 89_478_485  # pixels (height x width) of one picture or frame: Pillow's decompression limit
    max_frames: int = 4096  # frames of one video that are decoded to pixels and kept, or listed one by one
    max_seconds: float = 6 * 3600.0  # seconds of one video
    max_aspect_ratio: float = 200.0  # longer side over shorter side
    timeout: float = 30.0  # seconds for one URL, redirects included
    max_redirects: int = 5  # redirects followed for one URL
    allow_urls: bool = True  # http and https; False refuses every URL (data URIs are no URLs in this sense)
    allowed_hosts: tuple[str, ...] | None = None  # ".example.org" allows sub-domains; None: any public host
    allow_private_addresses: bool = False  # loopback, private, link-local, reserved and multicast addresses
    allow_local_files: bool = True  # paths and file:// URLs
    local_roots: tuple[str | os.PathLike, ...] | None = None  # directories that files must lie in; None: any
    image_formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
    video_formats: tuple[str, ...] = (
        "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpeg", "mpegts", "flv", "ogg", "gif", "asf", "wav",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for field in ("max_bytes", "max_pixels", "max_frames", "max_redirects"):
            value = getattr(self, field)
            lowest = 0 if field == "max_redirects" else 1
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < lowest:
                raise ValueError(message(field, value, f"must be an integer of at least {lowest}"))
            object.__setattr__(self, field, int(value))
        for field in ("max_seconds", "max_aspect_ratio", "timeout"):
            value = getattr(self, field)
            if not is_number(value, above=0):
                raise ValueError(message(field, value, "must be a positive, finite number"))
            if not isinstance(value, (int, float)):  # NumPy's, or a fraction
                object.__setattr__(self, field, float(value))
        for field in ("allow_urls", "allow_private_addresses", "allow_local_files"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(message(field, getattr(self, field), "must be True or False"))
        for field in ("allowed_hosts", "local_roots", "image_formats", "video_formats"):
            self._set_names(field, optional=field in ("allowed_hosts", "local_roots"))

    def _set_names(self, field: str, *, optional: bool) -> None:
        value = getattr(self, field)
        if value is None and optional:
            return
        items = (str, os.PathLike) if field == "local_roots" else str
        if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
            raise ValueError(message(field, value, "must be a tuple of names" + (" or None" if optional else "")))
        if not all(isinstance(item, items) and item for item in value):
            raise ValueError(message(field, value, "holds something that is not a name"))
        object.__setattr__(self, field, tuple(sorted(value) if isinstance(value, (set, frozenset)) else value))


DEFAULT_POLICY = MediaPolicy()


def fetch_bytes(source: Source, *, policy: MediaPolicy = DEFAULT_POLICY, name: str = "media") -> bytes:
    """The bytes behind `source`: a URL, a data URI, a path (also `file://`) or bytes themselves.

    Args:
        source: where the bytes are. A `str` is a URL or data URI if it begins like one, else a path.
        policy: the limits.
        name: how the item is called in messages, such as `images[1]`.

    Raises:
        TypeError: `source` is none of these.
        ValueError: the policy refuses it, or it is empty or malformed.
        OSError: it cannot be read; also a time-out (`TimeoutError`) and an HTTP status other than 200.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        _check_bytes(size, policy=policy, name=name)
        return bytes(source)
    scheme = url_scheme(source) if isinstance(source, str) else ""
    if scheme == "data":
        return _read_data_uri(str(source), policy=policy, name=name)
    if scheme in ("http", "https"):
        return _read_url(str(source), policy=policy, name=name)
    return _read_file(resolve_local(source, policy=policy, name=name), policy=policy, name=name)


def url_scheme(source: str) -> str:
    """The lower-case scheme of `source`, or `""` when it is a path. `data:` needs no slashes, others need `://`."""
    match = _SCHEME.match(source)
    if match is None:
        return ""
    scheme = match[1].lower()
    return scheme if scheme == "data" or source.startswith("://", match.end(1)) else ""


def is_url(source: object) -> bool:
    """Whether `source` is text that names an http(s) URL or a data URI (as opposed to a path)."""
    return isinstance(source, str) and url_scheme(source) in ("http", "https", "data")


def short_source(source: object) -> str:
    """`source` for messages: URLs without credentials, query and fragment, data URIs without their payload."""
    if isinstance(source, str) and (scheme := url_scheme(source)):
        if scheme == "data":
            return shorten(source.partition(",")[0] + ",…")
        rest = source[len(scheme) + 3 :]
        authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
        return shorten(f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}")
    return shorten(os.fspath(source) if isinstance(source, os.PathLike) else source)


def _problem(name: str, source: object, problem: str, remedy: str = "") -> str:
    shown = short_source(source)
    return cut(f"{name}={shown}: {problem}" + (f"; {remedy}" if remedy else ""))


def _check_bytes(size: int, *, policy: MediaPolicy, name: str, source: object = None) -> None:
    shown = f"{size} bytes" if source is None else short_source(source)
    if size == 0:
        raise ValueError(f"{name}={shown}: holds no data")
    if size > policy.max_bytes:
        raise ValueError(
            f"{name}={shown}: {size} bytes are more than the policy's max_bytes={policy.max_bytes}; "
            "raise MediaPolicy.max_bytes if this is meant"
        )


# Local files


def resolve_local(path: str | os.PathLike, *, policy: MediaPolicy = DEFAULT_POLICY, name: str = "media") -> Path:
    """The existing regular file behind `path` (or a `file://` URL), links resolved, inside `policy.local_roots`.

    Raises `TypeError` for something that is no path, `ValueError` when the policy refuses it, `OSError` when it does
    not exist or is no regular file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name}={shorten(path)}: expected a path, URL, data URI or bytes")
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not policy.allow_local_files:
        raise ValueError(_problem(name, path, "the policy refuses local files", "set MediaPolicy.allow_local_files"))
    scheme = url_scheme(text)
    if scheme == "file":
        text = _path_of_file_url(text, name=name)
    elif scheme:
        raise ValueError(_problem(name, path, f"scheme {scheme!r} is not supported", "use http, https, data or file"))
    if not text or "\0" in text:
        raise ValueError(_problem(name, text, "is no path"))
    try:
        resolved = Path(text).resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = getattr(error, "strerror", None) or "cannot be resolved"
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(_problem(name, path, reason, "base64 text belongs into a data URI")) from error
    if policy.local_roots is not None and not _inside(resolved, policy.local_roots):
        raise ValueError(_problem(name, path, "lies outside the policy's local_roots"))
    if not stat.S_ISREG(mode):
        raise OSError(_problem(name, path, "is a directory" if stat.S_ISDIR(mode) else "is no regular file"))
    return resolved


def _inside(resolved: Path, roots: tuple[str | os.PathLike, ...]) -> bool:
    return any(resolved.is_relative_to(Path(root).resolve()) for root in roots)


def _path_of_file_url(url: str, *, name: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ValueError(_problem(name, url, "is no valid URL")) from error
    if parts.netloc not in ("", "localhost"):
        raise ValueError(_problem(name, url, "a file URL may not name another host"))
    return urllib.request.url2pathname(parts.path)


def _read_file(path: Path, *, policy: MediaPolicy, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            _check_bytes(os.fstat(file.fileno()).st_size, policy=policy, name=name, source=path)
            data = file.read(policy.max_bytes + 1)
    except OSError as error:
        raise OSError(_problem(name, path, error.strerror or "cannot be read")) from error
    _check_bytes(len(data), policy=policy, name=name, source=path)
    return data


# Text that holds bytes


def decode_base64(text: str, *, policy: MediaPolicy = DEFAULT_POLICY, name: str = "media") -> bytes:
    """The bytes of base64 `text` (standard or URL-safe alphabet, white space ignored), bounded by `policy.max_bytes`.

    Raises `ValueError` when it is too long, empty or not base64.
    """
    _check_bytes(len(text) * 3 // 4, policy=policy, name=name)
    compact = _WHITESPACE.sub("", text).translate({ord("-"): "+", ord("_"): "/"})
    try:
        data = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: {len(text)} characters that are not valid base64") from error
    _check_bytes(len(data), policy=policy, name=name)
    return data


def split_data_uri(uri: str, *, name: str = "media") -> tuple[str, bool, str]:
    """`(media type, whether the payload is base64, payload)` of a data URI (RFC 2397); nothing is decoded yet.

    The media type is lower case without parameters, `text/plain` when it is left out.
    """
    head, comma, payload = uri.partition(",")
    if url_scheme(uri) != "data" or not comma:
        raise ValueError(_problem(name, uri[:60], "is no data URI", "data:<type>;base64,<data>"))
    media_type, *parameters = (part.strip().lower() for part in head[len("data:") :].split(";"))
    return media_type or "text/plain", "base64" in parameters, payload


def _read_data_uri(uri: str, *, policy: MediaPolicy, name: str) -> bytes:
    _, is_base64, payload = split_data_uri(uri, name=name)
    if is_base64:
        if "%" in payload:
            payload = urllib.parse.unquote(payload)
        return decode_base64(payload, policy=policy, name=name)
    if len(payload) > 3 * policy.max_bytes:  # a byte takes at most three characters: %41
        _check_bytes(len(payload) // 3, policy=policy, name=name)
    data = urllib.parse.unquote_to_bytes(payload)
    _check_bytes(len(data), policy=policy, name=name)
    return data


# URLs


def _read_url(url: str, *, policy: MediaPolicy, name: str) -> bytes:
    if not policy.allow_urls:
        raise ValueError(_problem(name, url, "the policy refuses URLs", "set MediaPolicy.allow_urls"))
    deadline = time.monotonic() + policy.timeout
    try:
        for _ in range(policy.max_redirects + 1):
            body, location = _get(url, policy=policy, name=name, deadline=deadline)
            if location is None:
                return body
            url = _redirected(url, location, name=name)
    except TimeoutError as error:
        raise TimeoutError(_problem(name, url, f"no answer within the policy's timeout={policy.timeout} s")) from error
    except (http.client.HTTPException, ssl.SSLError) as error:
        raise OSError(_problem(name, url, f"the server broke the protocol ({type(error).__name__})")) from error
    raise ValueError(_problem(name, url, f"more than the policy's max_redirects={policy.max_redirects} redirects"))


def _redirected(url: str, location: str, *, name: str) -> str:
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError as error:
        problem = f"redirects to {short_source(location)}, which is no valid URL"
        raise ValueError(_problem(name, url, problem)) from error


def _get(url: str, *, policy: MediaPolicy, name: str, deadline: float) -> tuple[bytes, str | None]:
    """One request without redirects: `(body, None)` or `(b"", location)`."""
    host, port, parts = _checked_parts(url, policy=policy, name=name)
    addresses = _public_addresses(host, port, url=url, policy=policy, name=name, deadline=deadline)
    with _connect(
        addresses, url=url, name=name, deadline=deadline, server=host if parts.scheme == "https" else ""
    ) as sock:
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        shown_host = f"[{host}]" if ":" in host else host
        default_port = 443 if parts.scheme == "https" else 80
        lines = (
            f"GET {target} HTTP/1.1",
            f"Host: {shown_host}" + ("" if port == default_port else f":{port}"),
            "User-Agent: arlow",
            "Accept: image/*, video/*, */*;q=0.1",
            "Accept-Encoding: identity",
            "Connection: close",
        )
        sock.settimeout(_left(deadline))
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        response = http.client.HTTPResponse(_BoundedSocket(sock, deadline), method="GET")  # type: ignore[arg-type]
        response.begin()
        return _read_response(response, url=url, policy=policy, name=name)


def _read_response(
    response: http.client.HTTPResponse, *, url: str, policy: MediaPolicy, name: str
) -> tuple[bytes, str | None]:
    location = response.getheader("Location")
    if response.status in REDIRECTS and location:
        return b"", location
    if response.status != 200:
        raise OSError(_problem(name, url, f"the server answered with status {response.status}"))
    if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise OSError(_problem(name, url, "the server sent a compressed body that was not asked for"))
    declared = response.length  # None when chunked or until the connection closes
    if declared is not None:
        _check_bytes(declared, policy=policy, name=name, source=url)
    chunks, total = [], 0
    while chunk := response.read1(CHUNK_BYTES):
        total += len(chunk)
        if total > policy.max_bytes:
            _check_bytes(total, policy=policy, name=name, source=url)
        chunks.append(chunk)
    if declared is not None and total < declared:
        raise OSError(_problem(name, url, f"the body ended after {total} of {declared} bytes"))
    _check_bytes(total, policy=policy, name=name, source=url)
    return b"".join(chunks), None


def _checked_parts(url: str, *, policy: MediaPolicy, name: str) -> tuple[str, int, urllib.parse.SplitResult]:
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except ValueError as error:  # includes UnicodeError
        raise ValueError(_problem(name, url, "is no valid URL")) from error
    if parts.scheme not in ("http", "https"):
        raise ValueError(_problem(name, url, f"scheme {parts.scheme!r} is not allowed", "use http or https"))
    if not host or re.search(r"[\x00-\x20\x7f]", host):
        raise ValueError(_problem(name, url, "names no host"))
    if parts.username is not None or parts.password is not None:
        raise ValueError(_problem(name, url, "a URL may not carry a user name or password"))
    if policy.allowed_hosts is not None and not _host_allowed(host, policy.allowed_hosts):
        raise ValueError(_problem(name, url, f"host {host[:80]!r} is not among the policy's allowed_hosts"))
    return host, port, parts


def _host_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    names = (entry.lower().rstrip(".") for entry in allowed)
    return any(host.endswith(entry) if entry.startswith(".") else host == entry for entry in names)


def _public_addresses(
    host: str, port: int, *, url: str, policy: MediaPolicy, name: str, deadline: float
) -> list[Address]:
    """The addresses of `host` that the policy allows, at least one; the name is resolved only here."""
    found: list = []

    def resolve() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    # The resolver has no time limit of its own; a daemon thread lets this call keep its deadline.
    thread = threading.Thread(target=resolve, name="arlow-resolve", daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise OSError(_problem(name, url, "the host name cannot be resolved")) from found[0]
    addresses = [(family, address) for family, _, _, _, address in found]
    if not policy.allow_private_addresses:
        addresses = [each for each in addresses if is_public_address(each[1][0])]
    if not addresses:
        problem = "the host has a loopback, private or reserved address"
        raise ValueError(_problem(name, url, problem, "see MediaPolicy.allow_private_addresses"))
    return addresses


def is_public_address(address: str) -> bool:
    """Whether an IP `address` is one of the public internet: not loopback, private, link-local, shared, reserved or
    multicast, nor an IPv6 address that wraps such an IPv4 one (mapped, 6to4, Teredo, NAT64)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        mapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped
        if mapped is not None:
            return is_public_address(str(mapped))
        if not all(is_public_address(str(each)) for each in (ip.sixtofour, *(ip.teredo or ())) if each is not None):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _connect(addresses: list[Address], *, url: str, name: str, deadline: float, server: str) -> socket.socket:
    """A socket connected to the first address that answers, with TLS for `server` unless that is empty."""
    try:
        sock = _first_to_answer(addresses, deadline=deadline)
        if not server:
            return sock
        try:
            sock.settimeout(_left(deadline))
            return ssl.create_default_context().wrap_socket(sock, server_hostname=server)
        except BaseException:
            sock.close()
            raise
    except TimeoutError:
        raise
    except OSError as error:
        reason = "certificate" if isinstance(error, ssl.SSLError) else error.strerror or type(error).__name__
        raise OSError(_problem(name, url, f"cannot connect ({reason})")) from error


def _first_to_answer(addresses: list[Address], *, deadline: float) -> socket.socket:
    """Each address in turn gets an equal share of the time that is left. Raises what the last one did."""
    *others, last = addresses
    for waiting, address in zip(range(len(addresses), 1, -1), others, strict=True):
        try:
            return _dial(address, seconds=_left(deadline) / waiting)
        except OSError:  # also a time-out, and a family this machine does not have
            continue
    return _dial(last, seconds=_left(deadline))


def _dial(address: Address, *, seconds: float) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(where)
        return sock
    except BaseException:
        sock.close()
        raise


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _BoundedReader(io.RawIOBase):
    """A socket as a raw stream whose every read ends at the deadline, so that a slow server cannot outlast it."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


class _BoundedSocket:
    """What `http.client.HTTPResponse` needs of a socket: `makefile`."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._reader = _BoundedReader(sock, deadline)

    def makefile(self, *_args: Any, **_kwargs: Any) -> io.BufferedReader:
        return io.BufferedReader(self._reader)
