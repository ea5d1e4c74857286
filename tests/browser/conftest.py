"""A headless Chromium of the system, and pages that note everything that should not happen."""

import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HANG = 30_000  # milliseconds: a guard against hanging, never a measure

ANSWER = "#chat .bot.message"


@pytest.fixture(scope="module")  # its event loop must not outlive it: other tests start theirs
def chromium():
    """The browser; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Visit:
    """A page of a server: `page` is Playwright's; `outside` and `complaints` should stay empty."""

    def __init__(self, page, url):
        self.page, self.url = page, url
        self.outside, self.complaints = [], []
        self.before = 0
        page.set_default_timeout(HANG)
        page.on("request", self._asked)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _asked(self, request):
        place = urlsplit(request.url)
        if place.scheme not in ("data", "blob") and f"{place.scheme}://{place.netloc}" != self.url:
            self.outside.append(request.url)

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def open(self):
        self.page.goto(self.url)
        self.page.wait_for_function("document.body.classList.contains('ready')")
        return self

    def reload(self):
        self.page.reload()
        self.page.wait_for_function("document.body.classList.contains('ready')")

    def send(self, text):
        """Sends a message; `answered` waits for its answer."""
        self.before = self.page.locator(ANSWER).count()
        self.page.fill("#message textarea", text)
        self.page.press("#message textarea", "Enter")

    def answered(self):
        """Waits until an answer has ended that `send` or a click asked for; its text."""
        self.page.locator(ANSWER).nth(self.before).wait_for()
        self.page.wait_for_selector("#stop", state="hidden")
        self.page.wait_for_selector("#send", state="visible")
        return self.answer()

    def answer(self):
        """The text of the last answer as it stands now."""
        found = self.page.locator(ANSWER)
        return found.last.inner_text() if found.count() else ""

    def until(self, condition, *arguments):
        """Waits until a condition written in JavaScript holds."""
        return self.page.wait_for_function(condition, arg=list(arguments))


@pytest.fixture
def visit(chromium):
    """`visit(url, locale=..., ...)`: a page in a browser of its own, with nothing stored; at the
    end it must not have asked anybody else for anything, nor complained."""
    with opened(chromium) as visiting:
        yield visiting


@contextmanager
def opened(chromium):
    visits = []

    def begin(url, *, locale="en-US", complaints=False, **options):
        context = chromium.new_context(locale=locale, **options)
        found = Visit(context.new_page(), url)
        visits.append((found, context, complaints))
        return found.open()

    yield begin
    for found, context, may_complain in visits:
        context.close()
        assert not found.outside, "the page asked somebody else"
        assert may_complain or not found.complaints, found.complaints
