"""Fetching under a policy: what is refused, what is bounded, and that an allowed source arrives byte for byte."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow import media_fetch
from arlow.media_fetch import (
    MediaPolicy,
    decode_base64,
    fetch_bytes,
    is_public_address,
    resolve_local,
    short_source,
    split_data_uri,
    url_scheme,
)


LOCAL = MediaPolicy(allow_private_addresses=True, timeout=5)
BODY = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """Answers by path; remembers what was asked."""

    asked: list[tuple[str, dict[str, str]]] = []

    def do_GET(self) -> None:
        Handler.asked.append((self.path, dict(self.headers)))
        name = self.path.split("?")[0].strip("/").split("/")[0]
        getattr(self, f"send_{name}", self.send_missing)()

    def answer(self, body: bytes = BODY, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_plain(self) -> None:
        self.answer()

    def send_missing(self) -> None:
        self.answer(b"no", status=404)

    def send_empty(self) -> None:
        self.answer(b"")

    def send_hop(self) -> None:
        self.answer(b"", status=302, Location="../plain?next=1")

    def send_loop(self) -> None:
        self.answer(b"", status=301, Location="/loop")

    def send_inside(self) -> None:
        self.answer(b"", status=307, Location="http://169.254.169.254/latest/meta-data")

    def send_bracket(self) -> None:
        self.answer(b"", status=302, Location="http://[::1")

    def send_file(self) -> None:
        self.answer(b"", status=302, Location="file:///etc/hostname")

    def send_gzip(self) -> None:
        self.answer(Content_Encoding="gzip")

    def send_short(self) -> None:
        self.answer(Content_Length=str(len(BODY) + 10))

    def send_declared(self) -> None:
        self.answer(b"", Content_Length=str(10**12))

    def send_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(bytes(65536))

    def send_chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (BODY[:5000], BODY[5000:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def send_drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b".")
            time.sleep(0.05)

    def send_noise(self) -> None:
        self.wfile.write(b"this is not HTTP at all\r\n\r\n")

    def log_message(self, *_args) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_args: None  # a client that hangs up is what some tests do
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


# URLs


@pytest.mark.parametrize("path", ["plain", "chunked", "hop/x", "plain/a b.png?q=ü&token=secret"])
def test_allowed_urls_arrive(server, path):
    """Bodies with a length, chunked, after a redirect and behind odd characters arrive byte for byte."""
    Handler.asked.clear()
    assert fetch_bytes(f"{server}/{path}", policy=LOCAL) == BODY
    _, headers = Handler.asked[0]
    assert headers["User-Agent"] == "arlow" and "Authorization" not in headers and "Cookie" not in headers


@pytest.mark.parametrize(
    ("path", "policy", "error", "part"),
    [
        ("missing", LOCAL, OSError, "404"),
        ("empty", LOCAL, ValueError, "no data"),
        ("loop", LOCAL, ValueError, "max_redirects=5"),
        ("hop", replace(LOCAL, max_redirects=0), ValueError, "max_redirects=0"),
        ("file", LOCAL, ValueError, "'file' is not allowed"),
        ("bracket", LOCAL, ValueError, "redirects to 'http://[::1', which is no valid URL"),
        ("gzip", LOCAL, OSError, "compressed"),
        ("short", LOCAL, OSError, f"after {len(BODY)} of {len(BODY) + 10} bytes"),
        ("declared", LOCAL, ValueError, "max_bytes"),
        ("endless", replace(LOCAL, max_bytes=100_000), ValueError, "max_bytes=100000"),
        ("chunked", replace(LOCAL, max_bytes=6000), ValueError, "max_bytes=6000"),
        ("noise", LOCAL, OSError, "protocol"),
        ("plain", MediaPolicy(), ValueError, "private"),
        ("plain", MediaPolicy(allow_urls=False), ValueError, "refuses URLs"),
        ("plain", replace(LOCAL, allowed_hosts=("example.org",)), ValueError, "allowed_hosts"),
        ("plain", replace(LOCAL, timeout=1e-9), TimeoutError, "timeout"),
    ],
)
def test_refused_urls_name_the_item(server, path, policy, error, part):
    """What the policy or the protocol refuses is an error that names the item and the reason, without the query."""
    with pytest.raises(error) as caught:
        fetch_bytes(f"{server}/{path}?token=secret", policy=policy, name="images[1]")
    text = str(caught.value)
    assert "images[1]" in text and part in text and "secret" not in text and len(text) < 300


def test_a_slow_server_cannot_outlast_the_deadline(server):
    """One byte every now and then does not renew the time-out."""
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"timeout=0\.3"):
        fetch_bytes(f"{server}/drip", policy=replace(LOCAL, timeout=0.3))
    assert time.monotonic() - start < 1.5


def test_private_addresses_are_refused_before_a_connection(server, monkeypatch):
    """With the default policy no packet leaves for a loopback address, whatever name leads to it."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_args: pytest.fail("connected"))
    port = server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"):
        with pytest.raises((ValueError, OSError), match=r"images\[0\]"):
            fetch_bytes(f"http://{host}:{port}/plain", name="images[0]")


def test_a_redirect_to_a_private_address_is_refused(server, monkeypatch):
    """Each redirect passes the address check again."""
    public = lambda address: address == "127.0.0.1"  # noqa: E731  # the test's own server stands for a public one
    monkeypatch.setattr(media_fetch, "is_public_address", public)
    with pytest.raises(ValueError, match="private or reserved"):
        fetch_bytes(f"{server}/inside", policy=MediaPolicy(timeout=5))
    assert fetch_bytes(f"{server}/plain", policy=MediaPolicy(timeout=5)) == BODY


def test_a_name_is_resolved_once(server, monkeypatch):
    """A name that answers with a public address first and a private one later gains nothing: it is asked once."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    asked, connected = [], []

    def resolve(host, port, **_options):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(_socket, address):
        connected.append(address)
        raise ConnectionRefusedError(111, "refused by the test")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(OSError, match="cannot connect"):
        fetch_bytes("http://rebind.example/x")
    assert asked == ["rebind.example"] and connected == [("93.184.216.34", 80)]


def test_a_public_address_beside_a_private_one_is_used(server, monkeypatch):
    """Of several addresses only allowed ones are connected to."""
    monkeypatch.setattr(media_fetch, "is_public_address", lambda address: address == "127.0.0.1")
    port = int(server.rpartition(":")[2])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("10.0.0.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    assert fetch_bytes("http://two.example/plain", policy=MediaPolicy(timeout=5)) == BODY


def test_every_address_is_tried_until_one_answers(server, monkeypatch):
    """A host whose first addresses are silent, refuse, or are of a family this machine lacks is still reached."""
    port = int(server.rpartition(":")[2])
    silent = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = [socket.create_connection(silent.getsockname()) for _ in range(1)]  # its queue is full now
    closed = socket.create_server(("127.0.0.1", 0))
    refused = closed.getsockname()
    closed.close()
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", silent.getsockname()),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", refused),
        (-1, socket.SOCK_STREAM, 6, "", refused),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    assert fetch_bytes("http://many.example/plain", policy=replace(LOCAL, timeout=2)) == BODY
    found[3:] = []
    with pytest.raises(OSError, match=r"media='http://many.example/plain': cannot connect"):
        fetch_bytes("http://many.example/plain", policy=replace(LOCAL, timeout=2))
    for each in (silent, *waiting):
        each.close()


def test_a_slow_resolver_meets_the_deadline(monkeypatch):
    """Name resolution counts towards the time-out."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: time.sleep(3))
    with pytest.raises(TimeoutError, match=r"timeout=0\.2"):
        fetch_bytes("http://slow.example/", policy=MediaPolicy(timeout=0.2))


def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    """A proxy variable would carry requests past the address checks."""
    for key in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")
    assert fetch_bytes(f"{server}/plain", policy=LOCAL) == BODY


def test_https_verifies_the_server(server):
    """A server that speaks no TLS, or has no valid certificate, is refused as such."""
    with pytest.raises(OSError, match=r"media='https://127.*(cannot connect|protocol)"):
        fetch_bytes(server.replace("http:", "https:") + "/plain", policy=LOCAL)
    assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hidden@example.org/x.png",
        "http:///nothing",
        "http://[::1",
        "file://[::1",
        "http://exa mple.org/",
        "http://example.org:99999/",
        "http://" + "ü" * 80 + "/",
        "https://example.org:-1/",
    ],
)
def test_malformed_urls(url):
    """URLs with credentials, without a host or otherwise malformed are refused, and credentials are not shown."""
    with pytest.raises((ValueError, OSError), match="images") as caught:
        fetch_bytes(url, name="images[0]", policy=MediaPolicy(timeout=2))
    assert "hidden" not in str(caught.value) and len(str(caught.value)) < 300


def test_numbers_of_other_libraries():
    """NumPy's numbers and fractions are limits like any other, kept as Python's own."""
    policy = MediaPolicy(max_bytes=np.int64(9), max_seconds=np.float32(1.5), timeout=Fraction(1, 2))
    assert policy == MediaPolicy(max_bytes=9, max_seconds=1.5, timeout=0.5)
    assert type(policy.max_bytes) is int and type(policy.max_seconds) is type(policy.timeout) is float


def test_allowed_hosts():
    """Exact names and, with a leading dot, sub-domains; nothing that merely ends alike."""
    allowed = ("example.org", ".cdn.example.net")
    for host, expected in {
        "example.org": True,
        "EXAMPLE.org.": True,
        "a.cdn.example.net": True,
        "cdn.example.net": False,
        "evilexample.org": False,
        "example.org.evil.com": False,
    }.items():
        policy = MediaPolicy(allowed_hosts=allowed)
        if expected:
            assert media_fetch._checked_parts(f"http://{host}/", policy=policy, name="x")[0] == host.lower().rstrip(
                "."
            )
        else:
            with pytest.raises(ValueError, match="allowed_hosts"):
                media_fetch._checked_parts(f"http://{host}/", policy=policy, name="x")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::1",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    """Loopback, private, shared, link-local, documentation, reserved and multicast ranges, wrapped ones included."""
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address):
    """Ordinary addresses pass, also wrapped in IPv6."""
    assert is_public_address(address)


# Files


def test_files_and_their_urls(tmp_path):
    """Paths as text, bytes-like paths, Path objects and file URLs with escapes give the file."""
    path = tmp_path / "a ü%41.bin"
    path.write_bytes(BODY)
    for source in (path, str(path), path.as_uri(), path.as_uri().replace("file://", "file://localhost")):
        assert fetch_bytes(source) == BODY
    assert resolve_local(path) == path.resolve()


def test_roots_hold_links_too(tmp_path):
    """With local roots, links and dot-dot paths are judged by where they lead."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.bin").write_bytes(BODY)
    (inside / "own.bin").write_bytes(BODY)
    (inside / "link.bin").symlink_to(outside / "secret.bin")
    (inside / "back.bin").symlink_to(inside / "own.bin")
    policy = MediaPolicy(local_roots=(inside,))
    assert fetch_bytes(inside / "own.bin", policy=policy) == fetch_bytes(inside / "back.bin", policy=policy) == BODY
    for path in (inside / "link.bin", inside / ".." / "outside" / "secret.bin", outside / "secret.bin"):
        with pytest.raises(ValueError, match="local_roots"):
            fetch_bytes(path, policy=policy)
    assert (
        fetch_bytes(inside / "own.bin", policy=MediaPolicy(local_roots=(str(tmp_path / "none"), str(inside)))) == BODY
    )


def test_files_that_are_refused(tmp_path):
    """Missing files, directories, pipes, link loops, empty and large files are refused by name."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(bytes(1000))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    small = MediaPolicy(max_bytes=999)
    for name, error, part in (
        ("missing", FileNotFoundError, "No such file"),
        (".", OSError, "directory"),
        ("pipe", OSError, "regular file"),
        ("loop", OSError, "images[2]"),
        ("empty", ValueError, "no data"),
        ("large", ValueError, "max_bytes=999"),
        ("nul\0", ValueError, "no path"),
    ):
        with pytest.raises(error) as caught:
            fetch_bytes(str(tmp_path / name), policy=small, name="images[2]")
        assert part in str(caught.value) and "images[2]" in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="allow_local_files"):
        fetch_bytes(tmp_path / "large", policy=MediaPolicy(allow_local_files=False))
    for source in ("ftp://example.org/a.png", "s3://bucket/key", "file://server/share/a.png"):
        with pytest.raises(ValueError, match="image"):
            fetch_bytes(source, name="image")
    with pytest.raises(OSError, match="data URI"):  # base64 text taken for a path
        fetch_bytes(base64.b64encode(BODY * 9).decode(), name="image")
    for source in (3, None, ["a"], {"url": "a"}):
        with pytest.raises(TypeError, match="image"):
            fetch_bytes(source, name="image")


def test_a_file_that_grows_stays_bounded(tmp_path, monkeypatch):
    """The limit holds while reading, not only for the size the file had at first."""
    path = tmp_path / "growing"
    path.write_bytes(bytes(2000))
    monkeypatch.setattr(media_fetch.os, "fstat", lambda _: os.stat_result((0o100644, 0, 0, 1, 0, 0, 10, 0, 0, 0)))
    with pytest.raises(ValueError, match="max_bytes=1000"):
        fetch_bytes(path, policy=MediaPolicy(max_bytes=1000))


# Text and bytes


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=1, max_size=200), st.sampled_from(["", "image/png", "image/png;charset=x"]), st.booleans())
def test_data_uris_round_trip(data, media_type, spaces):
    """Any bytes pass a data URI, in base64 (padded or not, either alphabet) and percent-encoded."""
    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("=")):
        if spaces:
            text = "\n".join(text[i : i + 5] for i in range(0, len(text), 5))
        assert fetch_bytes(f"data:{media_type};base64,{text}") == data
        assert decode_base64(text) == data
    assert fetch_bytes(f"data:{media_type}," + "".join(f"%{byte:02X}" for byte in data)) == data
    assert fetch_bytes(data) == fetch_bytes(bytearray(data)) == fetch_bytes(memoryview(data)) == data


def test_data_uris_are_bounded_before_decoding(monkeypatch):
    """A payload that is too long is refused by its length alone."""
    monkeypatch.setattr(media_fetch.base64, "b64decode", lambda *_args, **_options: pytest.fail("decoded"))
    monkeypatch.setattr(media_fetch.urllib.parse, "unquote_to_bytes", lambda *_args: pytest.fail("decoded"))
    policy = MediaPolicy(max_bytes=100)
    for source in ("data:;base64," + "A" * 1000, "data:," + "a" * 1000):
        with pytest.raises(ValueError, match="max_bytes=100"):
            fetch_bytes(source, policy=policy)
    with pytest.raises(ValueError, match="max_bytes=100"):
        decode_base64("A" * 1000, policy=policy)


@pytest.mark.parametrize(
    "source", ["data:image/png;base64,@@@", "data:image/png", "data:,", "data:;base64,A", b"", bytearray()]
)
def test_malformed_payloads(source):
    """Payloads that are no base64, missing or empty are refused by name."""
    with pytest.raises(ValueError, match=r"images\[0\]"):
        fetch_bytes(source, name="images[0]")


def test_split_data_uri():
    """The parts of a data URI, without decoding."""
    assert split_data_uri("data:VIDEO/jpeg;Base64,a,b") == ("video/jpeg", True, "a,b")
    assert split_data_uri("DATA:,x") == ("text/plain", False, "x")


def test_schemes_and_paths():
    """A drive letter or a colon in a file name is no scheme; data needs no slashes."""
    assert (
        url_scheme("C:\\a.png") == url_scheme("a:b.png") == url_scheme("time 12:30.png") == url_scheme("re:port") == ""
    )
    assert url_scheme("HTTPS://x/y") == "https" and url_scheme("Data:,x") == "data" and url_scheme("s3://b/k") == "s3"


def test_messages_show_no_secrets():
    """Credentials, queries, fragments and payloads stay out of messages."""
    assert short_source("https://u:p@h.example/a/b.png?sig=s#f") == "'https://h.example/a/b.png'"
    assert short_source("https://h.example?sig=s") == "'https://h.example'"
    assert short_source("data:image/png;base64,AAAA") == "'data:image/png;base64,…'"
    assert "AAAA" not in short_source("data:image/png;base64,AAAA") and short_source(b"abc") == "3 bytes"
    assert len(short_source(Path("x" * 500))) <= 80


# The policy itself


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_bytes", 0), ("max_bytes", 1.5), ("max_bytes", True), ("max_pixels", -1), ("max_frames", 0),
        ("max_redirects", -1), ("timeout", 0), ("timeout", float("nan")), ("max_seconds", float("inf")),
        ("max_aspect_ratio", "x"),
        ("allow_urls", 1), ("allow_private_addresses", None), ("allowed_hosts", "a.org"), ("allowed_hosts", (3,)),
        ("local_roots", "/tmp"), ("image_formats", None), ("image_formats", ("",)), ("video_formats", 3),
    ],
)  # fmt: skip
def test_impossible_policies(field, value):
    """Each impossible value is refused with its field."""
    with pytest.raises(ValueError, match=field):
        MediaPolicy(**{field: value})


def test_policies_are_values():
    """Policies are immutable, comparable and hashable, whatever kind of sequence they were made from."""
    policy = MediaPolicy(allowed_hosts=["b", "a"], local_roots={"x"})
    assert policy == MediaPolicy(allowed_hosts=("b", "a"), local_roots=("x",)) and hash(policy) == hash(
        replace(policy)
    )
    with pytest.raises(AttributeError):
        policy.max_bytes = 3
