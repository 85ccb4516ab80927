"""Guard of the viewer: which requests are answered at all, and how much may be uploaded.

A page of another site can send requests to this machine, and, if its name is made to resolve to it (DNS rebinding),
read the answers. So each request must name one of the viewer's own hosts, and come from the viewer's own page.
"""

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from codegrid.limits import short

LOCAL = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
MEGABYTE = 2**20
AT_ONCE = 64 * MEGABYTE  # bytes of one request
IN_ALL = 1024 * MEGABYTE  # of uploads that are still kept

# With these the browser itself refuses to load from elsewhere or send there. Gradio's page contains scripts and styles,
# and compiles its templates to functions: hence the two unsafe-... entries.
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' data: blob:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'self'",
    "cross-origin-resource-policy": "same-origin",
}
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Trusted:
    """Host names under which the viewer answers; also any bare address, if it serves the whole network."""

    names: frozenset[str]
    addresses: bool = False  # an address, unlike a name, cannot be made to lead elsewhere

    @classmethod
    def of(cls, host: str, more: Iterable[str] = ()) -> "Trusted":
        """Return the names of a viewer that listens on `host`, and `more`."""
        everywhere = host in EVERYWHERE
        names = {*LOCAL, host, *more, *([socket.gethostname()] if everywhere else [])}
        return cls(frozenset(name.lower().strip("[]") for name in names), everywhere)

    def refusal(self, headers: Headers) -> str | None:
        """Return why a request is refused, in words; None if it comes from the viewer's own page."""
        hosts, origin = headers.getlist("host"), headers.get("origin")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if not self._holds(host):
            name = short(host)
            return f"the viewer does not answer to {name}: open it as localhost, or add the name with --trusted-hosts"
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return f"the viewer accepts nothing from pages of {short(origin)}"
        if site not in ("same-origin", "none") and mode != "navigate":  # links to the page are allowed anywhere
            return "the viewer does not answer pages of other sites"
        return None

    def _holds(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.names:
                return True
            ipaddress.ip_address(name)
            return self.addresses
        except ValueError:
            return False


class Guard:
    """ASGI middleware that refuses foreign requests and uploads beyond a quota, and adds `HEADERS` to every answer.

    `folder` keeps the uploads, at most `in_all` bytes.
    """

    def __init__(self, app: Callable, trusted: Trusted, folder: Path, in_all: int = IN_ALL) -> None:
        self.app, self.trusted, self.folder, self.in_all = app, trusted, folder, in_all
        self.coming = 0  # bytes that are being uploaded

    async def __call__(self, scope: Message, receive: Callable, send: Send) -> None:
        """Answer one request."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        headers = Headers(scope=scope)
        reason, code = self.trusted.refusal(headers), 403
        size = 0
        if reason is None and scope["type"] == "http":
            size, reason, code = self._size_of(scope, headers)
        if reason is not None and scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if reason is not None:
            return await PlainTextResponse(f"{reason}\n", code)(scope, receive, send_with_headers)
        self.coming += size
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self.coming -= size

    def _size_of(self, scope: Message, headers: Headers) -> tuple[int, str | None, int]:
        """Return how many bytes a request uploads, why it is refused, if it is, and the status code."""
        if "transfer-encoding" in headers:
            return 0, "the length of the request is missing: send content-length", 411
        size = int(headers.get("content-length", 0))
        if size > AT_ONCE:
            return 0, f"this is too large: at most {AT_ONCE // MEGABYTE} MB can be uploaded at once", 413
        if not scope["path"].rstrip("/").endswith("/upload"):
            return 0, None, 200
        if size_of_files(self.folder) + self.coming + size > self.in_all:
            most = f"{self.in_all / MEGABYTE:,.0f} MB"
            words = f"no room: {most} of uploads are kept, each for an hour: wait, or restart the viewer"
            return 0, words, 413
        return size, None, 200


def size_of_files(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # removed in between
                continue
    return total
