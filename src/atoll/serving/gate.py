"""What every HTTP request passes first: its id, the key, the host's name, the count.

What it is: plain ASGI around the application, so that streams pass through untouched. What it is
not: a limit on bodies (api.py reads them).
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from atoll.serving.protocol import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from atoll.serving.metrics import Metrics

OPEN_PATHS = frozenset({"/health", "/openapi.json"})
"""Answered without a key."""

GUARDED = re.compile(r"/v1(/|$)|/metrics$")
"""What the key guards. A page that is mounted beside has a door of its own."""

_log = logging.getLogger(__name__)
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_KNOWN = re.compile(
    r"/(?:health|metrics|openapi\.json|v1/models|v1/completions|v1/chat/completions)"
)


def error_response(error: ApiError) -> Response:
    """An answer in the API's own form."""
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if error.status == 408:  # after a 413 what is left of the body is thrown away as it comes:
        headers["Connection"] = "close"  # to close would cut off clients that send it all first
    return Response(
        error.answer().model_dump_json(),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )


class Gate:
    """ASGI middleware. With ``key`` None only requests under a name of this machine's loopback
    are answered: a page from elsewhere that a browser shows must not reach the model by a name that
    resolves to it."""

    def __init__(self, app: ASGIApp, *, key: str | None, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        status = 499  # unless an answer begins

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        path = scope["path"]
        with self._metrics.open.track_inprogress():
            try:
                refusal = self._refusal(path, headers)
                answer = self._app if refusal is None else error_response(refusal)
                await answer(_as_get(scope), receive, sending)
            except Exception as error:  # a bug of ours; what has begun can only be broken off
                _log.exception("a fault while answering %s", request_id)
                if status != 499:
                    raise
                fault = ApiError(500, f"a fault of the server: {type(error).__name__}")
                await error_response(fault)(scope, receive, sending)
            finally:
                known = _KNOWN.fullmatch(path)
                self._metrics.answered(path if known else "other", status)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is None:
            host = headers.get("host", "localhost")
            if not _is_of_this_machine(host):
                return ApiError(
                    403,
                    "without an API key this server answers to localhost and 127.0.0.1 only; "
                    "to be reached by another name, start it with --api-key-file",
                    code="wrong_host",
                )
            return None
        if path in OPEN_PATHS or not GUARDED.match(path):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return ApiError(
                401,
                "no API key was given; send the header Authorization: Bearer KEY",
                code="missing_api_key",
            )
        if not hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._key):
            return ApiError(401, "this API key is wrong", code="invalid_api_key")
        return None


def _as_get(scope: Scope) -> Scope:
    """HEAD is answered as GET is; uvicorn, which keeps the method, leaves the body out."""
    if scope["method"] == "HEAD" and (scope["path"] in OPEN_PATHS or GUARDED.match(scope["path"])):
        return {**scope, "method": "GET"}
    return scope


def _is_of_this_machine(host: str) -> bool:
    """Whether a Host header names the loopback."""
    name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
