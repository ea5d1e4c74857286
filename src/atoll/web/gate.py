"""The gate before the page: only what the page needs, nothing from anywhere else, our own head.

Gradio's own server can do more than a chat needs: take uploads, hand out files, fetch from other
hosts, be called as an API. None of that knows our key, so none of it is let through. Every answer
tells the browser to load nothing from another server, whatever an answer of the model contains.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = (
    ("GET", r"/"),
    ("GET", r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"),
    ("GET", r"/(assets|static)/.*"),
    ("GET", r"/gradio_api/(info|startup-events|app_id|queue/data|heartbeat/\w+)/?"),
    ("POST", r"/gradio_api/(queue/join|run/predict|cancel|reset)/?"),
)
"""What a browser that shows the page asks for; patterns of whole paths below the page's own."""

_OPEN = re.compile("|".join(f"{method} {path}" for method, path in OPEN))
MOST_BYTES = 4 * 1024**2
"""Of the body of a request: a conversation that fills any model's context is smaller."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page is made of both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_CARDS = re.compile(r"<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*>\s*")
"""Pictures and titles for when a link to the page is posted somewhere: Gradio's, not ours."""

_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Gate:
    """An ASGI application before Gradio's.

    ``head`` is markup for the head of the page itself: Gradio adds what it is given only once its
    own script runs, when the browser's language has been read and something has been painted.
    """

    def __init__(self, inner: Application, *, head: str) -> None:
        self._inner = inner
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """404 for what is not `OPEN`, 413 for a body over `MOST_BYTES`, 415 for one not JSON."""
        from starlette.exceptions import HTTPException

        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if not _OPEN.fullmatch(f"{method} {path}"):
            raise HTTPException(404, "there is no such page")
        if method == "POST":
            headers = dict(scope["headers"])
            length = headers.get(b"content-length", b"0")
            if not (length.isdigit() and int(length) <= MOST_BYTES):
                raise HTTPException(413, "the message is too large")
            # What a page from elsewhere may not send without asking, and asking is not answered.
            if not headers.get(b"content-type", b"").startswith(b"application/json"):
                raise HTTPException(415, "send application/json")

        async def guarded(event: Event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], *_HEADERS]
            await send(event)

        if path == "/":
            await self._page(scope, receive, guarded)
        else:
            await self._inner(scope, receive, guarded)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page with our head in it, and without what Gradio tells other sites about itself."""
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Event = {}
        body = bytearray()

        async def gathered(event: Event) -> None:
            if event["type"] == "http.response.start":
                start.update(event)
                return
            body.extend(event.get("body", b""))
            if event.get("more_body"):
                return
            page = _CARDS.sub("", body.decode()).replace("</head>", f"{self._head}</head>", 1)
            written = page.encode()
            kept = [pair for pair in start["headers"] if pair[0] != b"content-length"]
            start["headers"] = [*kept, (b"content-length", str(len(written)).encode())]
            await send(start)
            await send({**event, "body": b"" if scope["method"] == "HEAD" else written})

        await self._inner({**scope, "headers": plain}, receive, gathered)
