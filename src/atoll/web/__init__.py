"""Pages for people: the chat of a served model, beside the curve and the plan of its run.

`mount` adds the page of `atoll serve` to its server; `run_page` shows a run's folder, there and as
the file of `atoll watch --page`. The page is a client of the server's own HTTP API (`client`) and
knows nothing of the engine behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

PATH = "/chat"
"""Where the page is; / leads to it."""


def mount(
    app: FastAPI, *, url: str, api_key: str | None, model: str, run: Path | None = None
) -> FastAPI:
    """Add the page to a server whose own HTTP API it uses.

    ``url`` is where the server reaches itself, without /v1: loopback, since the page's answers
    come through the server's process. With ``api_key``, nothing is shown or answered before the
    visitor has given it. ``run`` is the folder of the run that the model comes from, for the second
    tab. InputError if gradio is not installed or ``run`` is no run.
    """
    try:
        import gradio as gr  # a second long, and an extra
        import httpx  # noqa: F401  # comes with it
    except ImportError:
        fix = "pip install 'atoll[web]', or serve without the page"
        raise InputError("the page needs the package gradio", fix=fix) from None
    from fastapi.responses import RedirectResponse, Response

    from atoll.web import look
    from atoll.web.client import Endpoint
    from atoll.web.gate import Gate
    from atoll.web.page import build
    from atoll.web.run_tab import RunTab

    tab = RunTab(run, api_key=api_key) if run is not None else None
    page, words = build(Endpoint(url=url, model=model), with_key=api_key is not None, run=tab)

    @app.get("/", include_in_schema=False)
    async def to_the_page() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(look.icon(), media_type="image/svg+xml")

    gr.mount_gradio_app(
        app, page, PATH, i18n=words, theme=look.theme(), footer_links=[],
        run_history=False, show_error=False, ssr_mode=False, mcp_server=False,
        enable_monitoring=False, pwa=False,
    )  # fmt: skip
    mounted: Any = app.router.routes[-1]
    # Every open page has a stream that only the end of the server ends.
    app.state.endings = [*getattr(app.state, "endings", ()), mounted.app.stop_event.set]
    mounted.app = Gate(mounted.app, head=look.head())
    return app
