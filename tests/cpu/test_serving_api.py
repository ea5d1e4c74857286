"""The OpenAI API on a real server with a tiny model, asked by the official client and by hand."""

import http.client
import json
import sys
import time

import openai
import pytest
from pydantic import ValidationError
from tests.served import HANG, serving
from tests.tiny_model import open_tiny

from atoll.serving.protocol import ChatRequest, CompletionRequest

CHAT = [{"role": "user", "content": "the cat"}]
BROKEN = "q"  # a prompt that has it makes the logits NaN


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return open_tiny(tmp_path_factory.mktemp("tiny"), broken_token=BROKEN)


@pytest.fixture(scope="module")
def served(loaded):
    with serving(loaded, max_concurrency=4, max_queue=4) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def post(served, body, path="/v1/chat/completions", **headers):
    """Status, headers and JSON of a request that the client would not make."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, json.loads(content)


def chat(client, messages=CHAT, **options):
    options = {"max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def idle(served):
    """Waits until the engine has nothing to do."""
    end = time.monotonic() + HANG
    while (load := served.engine.load()).running or load.queued:
        assert time.monotonic() < end, "a request does not end"
        time.sleep(0.01)
    return load


# ---------------------------------------------------------------------- answers


def test_the_models(client):
    (card,) = client.models.list().data
    assert (card.id, card.object) == ("tiny", "model")
    assert client.models.retrieve("tiny").max_model_len == 256
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("large/other")


def test_a_chat_whole_and_streamed_is_the_same_text(client):
    whole = chat(client)
    assert whole.object == "chat.completion"
    (choice,) = whole.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length" and whole.usage.completion_tokens == 12
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == choice.message.content
    assert sum(bool(piece) for piece in pieces) > 3, "it comes in pieces"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "length" and not any(reasons[:-1])
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_completion_of_text_and_of_tokens(client, served):
    ids = served.service.language.prompt("the cat sat")
    by_text = client.completions.create(model="tiny", prompt="the cat sat", temperature=0)
    by_ids = client.completions.create(model="tiny", prompt=ids, temperature=0)
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_text.usage.completion_tokens == 16, "the API's own default"
    assert by_text.usage.prompt_tokens == len(ids)
    chunks = client.completions.create(
        model="tiny", prompt="the cat sat", temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks) == by_text.choices[0].text


def test_several_prompts_and_choices_keep_their_order(client):
    prompts = ["the cat", "the dog", "all was well"]
    several = client.completions.create(
        model="tiny", prompt=prompts, n=2, temperature=0, max_tokens=5
    )
    alone = [
        client.completions.create(model="tiny", prompt=p, temperature=0, max_tokens=5)
        for p in prompts
    ]
    assert [c.index for c in several.choices] == list(range(6))
    expected = [one.choices[0].text for one in alone for _ in range(2)]
    assert [c.text for c in several.choices] == expected
    assert several.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert several.usage.completion_tokens == 30


def test_a_seed_fixes_each_choice(client):
    first, again, other = (
        [c.message.content for c in chat(client, temperature=2.0, seed=seed, n=3).choices]
        for seed in (7, 7, 8)
    )
    assert first == again != other
    assert first[1:] == other[:2], "the seeds of the choices are counted on"
    assert len(set(first)) == 3


def test_a_stop_text_ends_it_and_stays_out(client):
    free = chat(client, max_tokens=30).choices[0].message.content
    stop = free[5:8]
    found = chat(client, max_tokens=30, stop=["not there", stop])
    assert found.choices[0].message.content == free[: free.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens < 30
    streamed = chat(client, max_tokens=30, stop=stop, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in streamed)
    assert text == free[: free.index(stop)]


def test_logprobs_of_a_chat(client, served):
    found = chat(client, logprobs=True, top_logprobs=3).choices[0]
    scores = found.logprobs.content
    assert len(scores) == 12
    assert b"".join(bytes(s.bytes) for s in scores).decode(errors="replace") == (
        found.message.content
    )
    for score in scores:
        assert score.logprob == max(t.logprob for t in score.top_logprobs) <= 0
        assert len(score.top_logprobs) == 3
    streamed = list(chat(client, logprobs=True, top_logprobs=3, stream=True))
    again = [s for c in streamed if (x := c.choices[0].logprobs) for s in x.content]
    assert again == scores
    assert chat(client).choices[0].logprobs is None


def test_logprobs_of_a_completion(client):
    found = client.completions.create(model="tiny", prompt="the", logprobs=2, temperature=0)
    scores, text = found.choices[0].logprobs, found.choices[0].text
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset) == 16
    for token, start in zip(scores.tokens, scores.text_offset, strict=True):
        # Bytes that turn out to be no character are text only when the next token has come.
        assert token.startswith("bytes:") or text[start:].lstrip("\ufffd").startswith(token)
    assert scores.text_offset == sorted(scores.text_offset)
    assert all(len(top) == 2 for top in scores.top_logprobs)


def test_an_answer_in_json(client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    found = chat(client, response_format=form, max_tokens=200, temperature=1, seed=1, n=2)
    for choice in found.choices:
        if choice.finish_reason == "stop":
            answer = json.loads(choice.message.content)
            assert isinstance(answer["n"], int) and isinstance(answer["ok"], bool)
        assert choice.message.content.startswith("{")
    any_object = chat(client, response_format={"type": "json_object"}, max_tokens=20)
    assert any_object.choices[0].message.content.startswith("{")


def test_turns_of_a_chat_reuse_what_was_computed(client):
    long = [{"role": "user", "content": "all was well, " * 12}]
    first = chat(client, long)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    second = chat(client, [*long, answer, *CHAT])
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < second.usage.prompt_tokens


def test_an_answer_goes_back_as_it_came(client):
    """As the client's own documentation has it: the message of an answer, appended."""
    said = chat(client).choices[0].message
    turns = [[*CHAT, again, *CHAT] for again in (said, said.model_dump(), said.to_dict())]
    plainly = [*CHAT, {"role": "assistant", "content": said.content}, *CHAT]
    expected = chat(client, plainly).choices[0].message.content
    assert [chat(client, t).choices[0].message.content for t in turns] == [expected] * 3


def test_parts_of_messages_and_developers(client):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    found = chat(client, [{"role": "user", "content": parts}])
    assert found.choices[0].message.content == chat(client).choices[0].message.content
    told = [
        chat(client, [{"role": role, "content": "Be short."}, *CHAT]).choices[0].message.content
        for role in ("system", "developer")
    ]
    assert told[0] == told[1]


def test_what_asks_for_nothing_is_passed_over(client):
    harmless = {"user": "me", "store": False, "metadata": {"a": "b"}, "tools": [], "top_p": 1}
    found = chat(client, extra_body={**harmless, "logit_bias": None, "top_k": 0, "min_p": 0.0})
    assert found.choices[0].message.content == chat(client).choices[0].message.content


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "status", "param", "words"),
    [
        ({"model": "other"}, 404, "model", "'tiny'"),
        ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, 400, "max_tokens", "integer"),
        ({"temperature": 3}, 400, "temperature", "2"),
        ({"temperature": "0"}, 400, "temperature", "number"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"n": 17}, 400, "n", "16"),
        ({"stop": ["a"] * 5}, 400, "stop", "at most 4"),
        ({"stop": [""]}, 400, "stop.0", "at least 1 character"),
        ({"colour": 1}, 400, "colour", "no field colour"),
        ({"tools": [{}]}, 400, "tools", "does not support"),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias", "does not support"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, 400,
         "messages.0.tool_calls", "does not support"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400,
         "messages.0.content.0.text", "required"),
        ({"metadata": {"str": 1}}, 400, "metadata.str", "string"),
        ({"x" * 100_000: 1}, 400, "x" * 200, "no field"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "system"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
        ({"messages": [*CHAT, {"role": "system", "content": "x"}]}, 422, "messages", "comes first"),
        ({"max_tokens": 300}, 400, "messages", "holds 256 together"),
        ({"messages": [{"role": "user", "content": "cat " * 400}]}, 400, "messages", "256"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs"),
        ({"stream_options": {}}, 400, "stream_options", "stream"),
        ({"response_format": {"type": "yaml"}}, 400, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema",
         "required"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "nonsense"}}}}, 422,
         "response_format.json_schema.schema", "nonsense"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"$ref": "#"}}}}, 422,
         "response_format.json_schema.schema", "cannot be followed"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"pattern": "z" * 9999 + "("}}}}, 422,
         "response_format.json_schema.schema", "regex"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_field(served, changes, status, param, words):
    found, _, content = post(served, {"model": "tiny", "messages": CHAT, **changes})
    error = content["error"]
    assert (found, error["param"]) == (status, param)
    assert words in error["message"] and len(error["message"]) < 1200
    assert "<state>" not in error["message"], "no dump of a library's inside"
    assert error["type"] == "invalid_request_error" and error["code"]


def test_both_numbers_of_an_overflow_are_told(client):
    with pytest.raises(openai.BadRequestError) as told:
        chat(client, max_tokens=250)
    assert told.value.code == "context_length_exceeded"
    prompt = chat(client).usage.prompt_tokens
    assert f"the prompt has {prompt} tokens and 250 more" in told.value.message


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model": "tiny", "messages": ' + b"[" * 100_000, 400, "invalid_json"),
        (b'{"metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 400, "invalid_json"),
        (b'{"model": "\xff\xfe"}', 400, "invalid_json"),
        (b'{"model": "\\ud800"}', 400, "invalid_json"),
        (b'{"model": NaN}', 400, "invalid_value"),
        (b"", 400, "invalid_json"),
        (b"null", 400, "invalid_value"),
        (b"[1]", 400, "invalid_value"),
        (b'"' + b"x" * 10_000_000 + b'"', 413, "request_too_large"),
    ],
    ids=["deep list", "deep table", "no UTF-8", "half a pair", "NaN", "empty", "null", "list",
         "10 MB"],
)  # fmt: skip
def test_bodies_that_are_no_request(served, body, status, code):
    found, _, content = post(served, body)
    assert (found, content["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("shape", "field", "wrong"),
    [(ChatRequest, "messages", 0), (CompletionRequest, "prompt", 1.5)],
)
def test_a_body_that_is_wrong_a_thousand_times_is_told_once(shape, field, wrong):
    """Each error takes a kilobyte and the loop's time: 4 MiB of them would stop everybody."""
    with pytest.raises(ValidationError) as told:
        shape.model_validate_json(json.dumps({"model": "tiny", field: [wrong] * 1000}))
    assert told.value.error_count() < 5


def test_a_body_without_a_length_is_bounded_too(served):
    def parts():
        yield b'{"model": "'
        for _ in range(200):
            yield b"x" * 65536

    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", parts(), headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_another_content_type_is_refused(served):
    found, _, content = post(served, {}, **{"Content-Type": "text/plain"})
    assert found == 415 and "application/json" in content["error"]["message"]
    found, _, content = post(served, b"\x1f\x8b", **{"Content-Encoding": "gzip"})
    assert found == 415 and "Content-Encoding" in content["error"]["message"]


def test_a_bug_is_told_with_the_requests_id(served, client, monkeypatch, caplog):
    def broken(_):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(served.engine, "submit", broken)
        found, headers, content = post(
            served, {"model": "tiny", "messages": CHAT}, **{"X-Request-Id": "mine-8"}
        )
    assert (found, content["error"]["type"]) == (500, "server_error")
    assert headers["X-Request-Id"] == "mine-8" and "mine-8" in caplog.text
    assert "ZeroDivisionError" in caplog.text, "the traceback is in the log"
    assert chat(client).choices


def test_json_without_its_package_is_refused_with_the_pip_line(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)  # as if it were not installed
    with pytest.raises(openai.UnprocessableEntityError, match="pip install llguidance") as told:
        chat(client, response_format={"type": "json_object"})
    assert told.value.param == "response_format"


def test_a_template_that_fails_fails_chats_alone(tmp_path):
    broken = open_tiny(tmp_path, template="{{ messages[7].content }}")
    with (
        serving(broken, fast=True) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="template fails") as told:
            chat(client)
        assert told.value.code == "template_failed"
        assert client.completions.create(model="tiny", prompt="the").choices


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_paths_and_methods_that_are_not_there(served, method):
    for path, status in (("/v1/nothing", 404), ("/v1/completions", 405)):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.status == status
        assert json.loads(answer.read())["error"]["message"]
        connection.close()


def test_head_is_get_without_the_body(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
    paths = ("/health", "/v1/models", "/v1/models/tiny", "/v1/models/no", "/v1/completions")
    for path, status in zip(paths, (200, 200, 200, 404, 405), strict=True):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert answer.status == status and int(answer.headers["Content-Length"])
        assert not answer.read(), "and the next answer on the connection is not a body"
    connection.close()


def test_a_page_from_elsewhere_reaches_nothing_by_another_name(served):
    found, _, content = post(served, {}, Host="evil.example:80")
    assert found == 403 and "--api-key-file" in content["error"]["message"]


def test_every_answer_has_an_id_and_a_clients_own_is_kept(served):
    _, headers, _ = post(served, {})
    assert headers["X-Request-Id"].startswith("req-")
    _, headers, _ = post(served, {}, **{"X-Request-Id": "mine-7"})
    assert headers["X-Request-Id"] == "mine-7"
    _, headers, _ = post(served, {}, **{"X-Request-Id": "no good"})
    assert headers["X-Request-Id"].startswith("req-")


def test_logits_that_are_no_numbers_concern_one_request_alone(client, served):
    with pytest.raises(openai.InternalServerError, match="not finite") as told:
        chat(client, [{"role": "user", "content": f"the {BROKEN}"}])
    assert told.value.code == "generation_failed"
    stream = chat(client, [{"role": "user", "content": f"the {BROKEN}"}], stream=True)
    with pytest.raises(openai.APIError, match="not finite"):
        list(stream)
    assert chat(client).choices[0].message.content
    assert idle(served).finished["error"] == 2
