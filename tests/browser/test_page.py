"""The page of `atoll serve` in a real browser, on a real server with a tiny model."""

import json
import time
from contextlib import contextmanager

import httpx
import pytest
from tests.pure import run_cases
from tests.served import HANG, serving
from tests.tiny_model import open_tiny

LONG = 8000  # tokens: more than are computed before a test stops it
ATTACK = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<svg onload='window.hacked = 1'></svg><iframe srcdoc='<script>parent.hacked = 1</script>'>"
    "</iframe>\n\n[link](javascript:window.hacked=1) **bold** <b onclick='window.hacked = 1'>b</b>"
)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return run_cases.eventful(tmp_path_factory.mktemp("run") / "told")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return open_tiny(tmp_path_factory.mktemp("tiny"), context=8192, stops=False)


@pytest.fixture(scope="module")
def served(chromium, loaded, told):
    page = {"run": told.path}
    with serving(loaded, page=page, max_concurrency=1, max_queue=0, threads=1) as found:
        yield found


def idle(served):
    """Waits until the engine has nothing to do."""
    end = time.monotonic() + HANG
    while (load := served.engine.load()).running or load.queued:
        assert time.monotonic() < end, "an answer goes on that nobody waits for"
        time.sleep(0.02)
    return load


def limit_to(visit, tokens):
    visit.page.fill("#max-tokens input", str(tokens))
    visit.page.press("#max-tokens input", "Tab")


@contextmanager
def somebody_else(served):
    """Another client holds the engine's only place."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "the cat"}],
            "max_tokens": LONG, "stream": True, "temperature": 0.3}  # fmt: skip
    with (
        httpx.Client(timeout=HANG, trust_env=False) as client,
        client.stream("POST", f"{served.url}/v1/chat/completions", json=body) as reply,
    ):
        lines = reply.iter_lines()  # held: an iterator that is thrown away closes the stream
        next(lines)
        yield


def test_a_conversation(served, visit):
    v = visit(served.url)
    page = v.page
    limit_to(v, 24)
    page.fill("#temperature input[type=number]", "1.5")
    page.fill("#seed input", "1")
    page.fill("#message textarea", "the cat")
    page.press("#message textarea", "Shift+Enter")
    page.keyboard.type("the dog")
    assert page.input_value("#message textarea") == "the cat\nthe dog"
    page.press("#message textarea", "Enter")
    first = v.answered()
    assert first and "24 tokens" in page.inner_text("#notice"), "it was cut, and the page says so"
    assert page.input_value("#message textarea") == ""
    page.locator("#chat .bot-row").hover()
    assert page.get_by_role("button", name="Copy this message").count() >= 2

    page.fill("#seed input", "2")
    page.fill("#message textarea", "not sent yet")
    page.get_by_role("button", name="Retry").click()
    v.until("([first]) => document.querySelector('#chat .bot.message')?.innerText != first", first)
    again = v.answered()
    assert page.locator("#chat .bot.message").count() == 1
    assert page.input_value("#message textarea") == "not sent yet"

    v.reload()
    assert v.answer() == again and "the dog" in page.inner_text("#chat .user.message")
    assert page.input_value("#max-tokens input") == "24", "the settings are kept too"
    limit_to(v, "")
    v.send("and then")
    page.wait_for_selector("#chat .bot.message >> nth=1")
    page.click("#fresh")  # in the middle of an answer
    page.wait_for_selector("#chat .bot.message", state="detached")
    v.until("() => sessionStorage['atoll.chat'] == '[]'")
    idle(served)
    v.reload()
    assert page.locator("#chat .bot.message").count() == 0
    assert not unnamed(page)


def unnamed(page):
    """Whatever can be used and has no name for those who do not see it."""
    return page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, a, [role=tab]")]
        .filter(one => one.checkVisibility())
        .filter(one => !(one.getAttribute("aria-label") || one.title || one.innerText?.trim()
            || [...(one.labels ?? [])].some(label => label.innerText.trim())))
        .map(one => one.outerHTML)"""
    )


def test_an_edited_message_is_answered_anew(served, visit):
    v = visit(served.url)
    limit_to(v, 0)
    v.send("the cat:\n\tsat\n    - on")
    v.page.wait_for_selector("#notice .error >> text=at least 1")
    assert v.page.input_value("#message textarea") == "", "a second Enter would send it twice"
    limit_to(v, 8)
    v.page.click("#again")
    v.answered()
    assert "the cat:\\n\\tsat\\n    - on" in v.page.evaluate("sessionStorage['atoll.chat']")
    v.page.get_by_role("button", name="Edit").first.click()
    v.page.locator("#chat .user-row textarea").fill("  ")
    v.page.get_by_role("button", name="Submit").click()
    v.page.wait_for_selector("#chat .user.message >> text=sat")
    one_of_each = (  # waited for: Gradio takes messages out for a moment when it draws them anew
        "() => ['user', 'bot'].every("
        "who => document.querySelectorAll(`#chat .${who}.message`).length == 1)"
    )
    v.until(one_of_each)  # nothing was said: as it was
    v.page.get_by_role("button", name="Edit").first.click()
    v.page.locator("#chat .user-row textarea").fill("the man")
    v.page.get_by_role("button", name="Submit").click()
    # The old answer may stand there for a moment: what is kept says when the new one does.
    v.until(
        "() => { const kept = JSON.parse(sessionStorage['atoll.chat']);"
        " return kept.length == 2 && JSON.stringify(kept[0]).includes('the man'); }"
    )
    v.answered()
    v.until(one_of_each)


def test_text_grows_and_stop_frees_the_engine(served, visit):
    v = visit(served.url)
    v.send("the cat")
    longer = "([n]) => (document.querySelector('#chat .bot.message')?.innerText.length ?? 0) > n"
    v.until(longer, 20)
    seen = len(v.answer())
    v.until(longer, seen)
    assert served.engine.load().running == 1
    before = served.engine.load().finished.get("cancelled", 0)
    v.page.click("#stop")
    v.answered()
    assert "Stopped" in v.page.inner_text("#notice")
    assert idle(served).finished["cancelled"] == before + 1

    v.send("the dog")  # and whoever leaves needs no answer
    v.page.wait_for_selector("#chat .bot.message >> nth=1")
    v.page.close()
    assert idle(served).finished["cancelled"] == before + 2


def test_a_full_server_is_told_kindly(served, visit):
    v = visit(served.url)
    limit_to(v, 8)
    with somebody_else(served):
        v.send("the cat")
        v.page.wait_for_selector("#notice .error")
        told = v.page.inner_text("#notice [role=alert]")
        assert "try again in about" in told and any(letter.isdigit() for letter in told)
        assert "the cat" in v.page.inner_text("#chat .user.message"), "the message is kept"
    idle(served)
    v.page.click("#again")
    v.page.wait_for_selector("#chat .bot.message")
    assert v.answered()


def test_too_long_a_conversation_is_told_with_numbers(served, visit):
    v = visit(served.url)
    v.send("the cat sat on the mat. " * 2000)
    v.page.wait_for_selector("#notice .error")
    told = v.page.inner_text("#notice [role=alert]")
    assert "longer than the model can read" in told and "8192" in told


def test_a_message_that_no_server_takes_and_what_another_version_kept(served, visit):
    v = visit(served.url, complaints=True)
    v.page.evaluate("""() => { sessionStorage.clear();
        localStorage.setItem("atoll.chat", '[{"role": "user"}]');
        localStorage.setItem("atoll.settings", '[1, 2, 3, 4, 5]'); }""")
    v.reload()
    v.page.evaluate("""() => { const box = document.querySelector("#message textarea");
        box.value = "x".repeat(4.2e6); box.dispatchEvent(new Event("input", {bubbles: true})); }""")
    v.page.click("#send")
    v.page.wait_for_selector("#large >> text=larger than the server accepts")
    assert len(v.page.input_value("#message textarea")) == 4_200_000, "it is kept"
    limit_to(v, 4)
    v.send("the cat")
    v.answered()
    assert v.page.locator("#large").count() == 0


def test_chinese(served, visit):
    v = visit(served.url, locale="zh-HK", color_scheme="dark")
    page = v.page
    assert page.inner_text("#send") == "发送" and page.inner_text("#fresh") == "新对话"
    assert page.get_by_label("系统提示词").count() == 1
    limit_to(v, "many")
    page.fill("#message textarea", "san guo")
    page.dispatch_event("#message textarea", "keydown", {"key": "Enter", "isComposing": True})
    assert page.input_value("#message textarea") == "san guo", "this Enter ends a word"
    v.send("三国演义")
    page.wait_for_selector("#notice .error >> text=请填写不小于 1 的整数")
    limit_to(v, "")
    assert page.get_attribute("html", "lang") == "zh-CN"
    with somebody_else(served):
        v.send("三国演义")
        page.wait_for_selector("#notice .error >> text=服务器正忙")
        assert page.get_by_role("button", name="复制这条消息").count()
    page.get_by_role("tab", name="训练过程").click()
    page.wait_for_selector(".run >> text=时间去向")
    page.click("#language")
    v.until("() => document.querySelector('#send')?.innerText == 'Send'")
    v.page.wait_for_function("document.body.classList.contains('ready')")
    assert "三国演义" in page.inner_text("#chat")


def test_the_run_is_shown_and_followed(served, told, visit):
    v = visit(served.url, viewport={"width": 390, "height": 844})
    page = v.page
    page.get_by_role("tab", name="Training run").click()
    page.wait_for_selector(".run svg[aria-label^='Loss by step']:visible")
    words = page.inner_text(".run")
    assert "Where the time went" in words and "johor" in words
    step = told.step
    assert f"{step:,}" in page.inner_text(".run .tile >> nth=0")
    told.steps(1)
    page.wait_for_selector(f".run .tile >> text={step + 1:,}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_answer_cannot_run_anything(served, visit):
    v = visit(served.url, complaints=True)
    stored = [
        {"role": role, "metadata": None, "options": None, "content": [{"type": "text", "text": t}]}
        for role, t in (("user", "x"), ("assistant", ATTACK))
    ]
    v.page.evaluate("chat => localStorage.setItem('atoll.chat', chat)", json.dumps(stored))
    v.page.evaluate("sessionStorage.clear()")
    v.reload()
    v.page.wait_for_selector("#chat .bot.message strong")
    assert v.page.evaluate("window.hacked") is None
    inside = "#chat .bot.message :is(script, iframe, [onclick], [onerror], [onload])"
    assert v.page.locator(inside).count() == 0
    assert v.page.locator("#chat .bot.message a[href^='javascript']").count() == 0


def test_the_key_is_asked_for_and_the_page_is_no_way_around_it(loaded, told, visit, caplog):
    page_of_run = {"run": told.path}
    with serving(loaded, key="a-key", page=page_of_run, max_concurrency=1) as guarded:
        v = visit(guarded.url, complaints=True)
        page = v.page
        assert not page.locator("#message textarea").is_visible()
        assert "tiny" not in page.content() and "johor" not in page.content()
        for wrong in ("another", "schl\u00fcssel"):
            page.fill("#key input", wrong)
            page.press("#key input", "Enter")
            page.wait_for_selector("#wrong .error")
            v.until("() => document.querySelector('#key input').value == ''")
        page.fill("#key input", " a-key ")
        page.click("#enter")
        page.wait_for_selector("#message textarea")
        v.reload()
        page.wait_for_selector("#message textarea")
        assert "a-key" not in page.evaluate("JSON.stringify(localStorage)")

        fns = guarded_functions(guarded.url)
        assert fns["_look"] and fns["_send"]
        for index in fns["_look"]:
            data = {"fn_index": index, "data": ["another", "en", 0], "session_hash": "s"}
            reply = httpx.post(f"{guarded.url}/chat/gradio_api/run/predict", json=data)
            assert "svg" not in reply.text and "johor" not in reply.text

        # The server goes, and the page says so by itself.
        guarded.running.should_exit = True
        page.wait_for_selector("#lost[role=alert]")
        assert "does not answer" in page.inner_text("#lost")
    assert not [one for one in caplog.records if one.levelname == "ERROR"], "it ended in good order"


def guarded_functions(url):
    """Name of a handler -> its numbers, as the page's own settings list them."""
    found = {}
    for one in httpx.get(f"{url}/chat/config").json()["dependencies"]:
        found.setdefault(one["api_name"], []).append(one["id"])
    return found
