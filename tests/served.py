"""A real server in a thread: uvicorn on a free port of the loopback, a tiny model behind it."""

import threading
from contextlib import contextmanager

from atoll import web
from atoll.serving import server
from atoll.serving.api import create_app
from atoll.serving.engine import open_engine
from atoll.serving.text import Language

HANG = 60.0  # seconds: a guard against hanging, never a measure


class Served:
    """`url`, and what is behind it."""

    def __init__(self, app, engine, running, found):
        self.app, self.engine, self.running = app, engine, running
        self.url = server.url_of(found)
        self.port = found.getsockname()[1]
        self.service = app.state.service


@contextmanager
def serving(loaded, *, key=None, name="tiny", grace=0.0, page=None, **options):
    """A server of a loaded model; stopped, with everything behind it, at the end.

    ``page`` are arguments of `atoll.web.mount`, for a server that has the page."""
    engine = open_engine(loaded, **options)
    language = Language(loaded)
    app = create_app(engine, language, model_name=name, api_key=key)
    ready = threading.Event()
    with server.listen("127.0.0.1", 0) as found:
        if page is not None:
            web.mount(app, url=server.url_of(found), api_key=key, model=name, **page)
        running = server.Server(app, engine, grace=grace, on_ready=ready.set)
        thread = threading.Thread(target=running.serve_until_signal, args=(found,))
        thread.start()
        try:
            assert ready.wait(HANG)
            yield Served(app, engine, running, found)
        finally:
            running.should_exit = True
            thread.join(HANG)
            engine.close()
            language.close()
            assert not thread.is_alive(), "the server does not stop"
