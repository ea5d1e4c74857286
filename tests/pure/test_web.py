"""The words of the page, its gate, and what an error of the API comes to; no browser, no server."""

import asyncio
import re
import string

import pytest

from atoll.planning.svg import tag
from atoll.web import gate, words
from atoll.web.client import Endpoint, Refused, _read, _refusal_of
from atoll.web.talk import turns


@pytest.mark.parametrize("key", list(words.words()))
def test_every_text_is_there_in_every_language_with_the_same_fields(key):
    texts = words.words()[key]
    assert set(texts) == set(words.LANGUAGES)
    fields = [
        {name for _, name, _, _ in string.Formatter().parse(t) if name} for t in texts.values()
    ]
    assert all(each == fields[0] for each in fields)
    assert all(texts.values())


def test_a_language_that_is_not_spoken_here_gets_the_first():
    assert words.say("send", "fr") == words.say("send", "en") != words.say("send", "zh")


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("Islands", "岛"),
        ("of 1,000 steps", "共 1,000 步"),
        ("loss; validation 2.5", "损失; 验证 2.5"),
        (
            "finished, began 2026-11-26, contract: bitwise",
            "已完成, 开始于 2026-11-26, 约定：逐位一致",
        ),
        ("what nobody translated", "what nobody translated"),
    ],
)
def test_a_run_is_told_in_chinese(english, chinese):
    markup = tag("p", english, data_name=english)
    assert words.translate(markup, "en") == markup
    assert words.translate(markup, "zh") == tag("p", chinese, data_name=chinese)


def test_what_the_run_page_says_is_translated(tmp_path):
    """Headings and columns, that is: everything in the page that no run decides."""
    from tests.pure import run_cases

    from atoll.history import reading
    from atoll.web.run_page import sections_of

    run = run_cases.eventful(tmp_path / "run")
    page = words.translate("".join(sections_of(reading.read(run.path))), "zh")
    headings = re.findall(r"<(?:h2|th)[^>]*>([^<]+)<", page)
    assert len(headings) > 12
    assert not [each for each in headings if each.isascii()]


@pytest.mark.parametrize(
    ("status", "error", "key", "message"),
    [
        (401, {"code": "invalid_api_key", "message": "m"}, "wrong_key", ""),
        (413, {"message": "m"}, "too_large", ""),
        (429, {"code": "queue_full", "message": "m"}, "full", ""),
        (503, {"code": "stopping", "message": "m"}, "stopping", ""),
        (400, {"code": "context_length_exceeded", "message": "9 of 8"}, "context_full", "9 of 8"),
        (400, {"code": "invalid_value", "message": "m"}, "failed", "m"),
        (500, {"code": "stopping", "message": "m"}, "stopping", ""),
        (500, "a page of a proxy", "failed", ""),
        (502, None, "failed", ""),
    ],
)
def test_an_error_has_words(status, error, key, message):
    refused = _refusal_of(status, error)
    assert (refused.key, refused.message) == (key, message)
    assert refused.key in words.words()


def test_what_was_said_before_an_answer_is_one_turn():
    said = [("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    messages = [{"role": role, "content": text} for role, text in said]
    found = [(one["role"], one["content"]) for one in turns(messages)]
    assert found == [("system", "s"), ("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]
    assert messages[1]["content"] == "a", "what the page shows stays as it is"


@pytest.mark.parametrize("key", ["schl\u00fcssel", "a\nb", "\u5bc6\u94a5"])
def test_what_can_be_no_key_is_a_wrong_one(key):
    pytest.importorskip("httpx")
    with pytest.raises(Refused) as caught:
        asyncio.run(Endpoint(url="http://127.0.0.1:1", model="m").accepts(key))
    assert caught.value.key == "wrong_key"


def test_events_of_a_stream():
    assert _read('{"choices": [{"delta": {"content": "x"}, "finish_reason": null}]}') == (
        "x",
        False,
    )
    assert _read('{"choices": [{"delta": {}, "finish_reason": "length"}]}') == ("", True)
    assert _read('{"choices": [], "usage": {}}') == ("", False)
    for text in ("no JSON", "[]", '{"choices": 1}', '{"error": {"message": "broken"}}'):
        with pytest.raises(Exception) as caught:
            _read(text)
        assert caught.value.key == "failed", text


def asked(method, path, *, headers=()):
    """The status that the gate gives, 200 if it lets a request through."""
    from starlette.exceptions import HTTPException

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<head></head>"})

    sent = []

    async def send(event):
        sent.append(event)

    scope = {"type": "http", "method": method, "path": f"/chat{path}", "root_path": "/chat"}
    try:
        asyncio.run(gate.Gate(inner, head="<b>")({**scope, "headers": headers}, None, send))
    except HTTPException as error:
        return error.status_code, []
    return sent[0]["status"], sent


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://other/x"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/call/look"),
        ("GET", "/monitoring"),
        ("POST", "/login"),
        ("PUT", "/"),
        ("GET", "/assets/../../x\n"),
    ],
)
def test_the_gate_lets_nothing_through_that_the_page_does_not_need(method, path):
    assert asked(method, path)[0] == 404


def test_the_gate_bounds_bodies_and_tells_browsers_to_load_nothing_else():
    big = [(b"content-length", str(gate.MOST_BYTES + 1).encode())]
    assert asked("POST", "/gradio_api/queue/join", headers=big)[0] == 413
    plain = [(b"content-type", b"text/plain")]
    assert asked("POST", "/gradio_api/queue/join", headers=plain)[0] == 415
    json = [(b"content-type", b"application/json")]
    assert asked("POST", "/gradio_api/queue/join", headers=json)[0] == 200
    status, (start, body) = asked("GET", "/")
    assert status == 200 and body["body"] == b"<head><b></head>"
    policy = dict(start["headers"])[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy


def test_the_plan_of_a_run_is_shown_with_its_pictures_where_it_was_made_with_estimates(tmp_path):
    from tests.pure import run_cases

    from atoll.fleet import Fleet
    from atoll.planning import planner
    from atoll.recipe import Recipe
    from atoll.web.run_tab import RunTab

    island = {"name": "a", "site": "home", "chip": "ascend-910b2", "nodes": 2, "chips_per_node": 8}
    fleet = {"site": [{"name": "home"}], "island": [island, {**island, "name": "b"}]}
    run = run_cases.Told(tmp_path / "run", fleet=fleet)
    run.start(a="k1", b="k1")
    run.steps(3)
    tab = RunTab(run.path, api_key=None)
    markup, version = tab.look("", "en", 0)
    assert "<h2>Plan</h2>" not in markup, "a run that has no plan file shows none"
    assert tab.look("", "en", version) is None, "nothing is new"

    recipe = Recipe.from_dict(run_cases.RECIPE)
    plan = planner.plan_of(planner.plan(recipe, Fleet.from_dict(fleet)))
    plan.save(run.path / "plan.json")
    run.steps(1)
    markup, version = tab.look("", "en", version)
    for text in ("<h2>Plan</h2>", "ascend-910b2", "tokens/s", "Memory of the fullest device"):
        assert text in markup
    (run.path / "plan.json").write_text('{"schema": 999}')
    run.steps(1)
    assert "<h2>Plan</h2>" not in tab.look("", "en", version)[0], "what is newer is left out"
