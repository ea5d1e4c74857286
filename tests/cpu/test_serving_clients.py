"""Clients that have no key, come too many, leave, wait or dawdle; and the metrics of it all."""

import asyncio
import http.client
import json
import socket
import time
from contextlib import contextmanager

import openai
import pytest
from prometheus_client import parser
from tests.served import HANG, serving
from tests.tiny_model import open_tiny

from atoll.errors import InputError
from atoll.modeling.inference import PAGE, page_bytes
from atoll.serving import http as wire
from atoll.serving import server as server_module

KEY = "secret-7"
CHAT = [{"role": "user", "content": "the cat"}]
LONG = 4000  # tokens: seconds of computing, so that whoever leaves leaves before the end


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return open_tiny(tmp_path_factory.mktemp("tiny"), context=4096, stops=False)


@pytest.fixture(scope="module")
def served(loaded):
    memory = 2 * (LONG // PAGE + 1) * page_bytes(loaded.model)  # for two long answers
    with serving(loaded, key=KEY, max_concurrency=2, max_queue=3, memory=memory) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


@pytest.fixture(autouse=True)
def quiet(served):
    """Each test begins and ends with an engine that has nothing to do."""
    idle(served)
    yield
    idle(served)


def until(condition):
    end = time.monotonic() + HANG
    while not (value := condition()):
        assert time.monotonic() < end, "hangs"
        time.sleep(0.01)
    return value


def idle(served):
    """Waits until nothing runs and nothing is held; the load."""
    return until(
        lambda: x if not ((x := served.engine.load()).running or x.queued or x.cache_used) else None
    )


def chat(client, **options):
    options = {"max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(model="tiny", messages=CHAT, **options)


def raw(served, **options):
    """A connection on which a chat was asked for, by hand."""
    body = {"model": "tiny", "messages": CHAT, "max_tokens": LONG, "temperature": 0, **options}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize("key", ["wrong", "", KEY + "x", KEY[:-1], "\xe9"])
def test_a_wrong_key_is_refused(served, key):
    for path in ("/v1/models", "/v1/chat/completions", "/v1/nothing", "/metrics"):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        assert json.loads(answer.read())["error"]["type"] == "authentication_error"
        connection.close()


def test_the_client_names_a_wrong_key(served, client):
    wrong = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong")
    with wrong, pytest.raises(openai.AuthenticationError, match="wrong"):
        chat(wrong)
    assert chat(client).choices


def test_health_needs_no_key_and_a_key_allows_any_name(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
    connection.request("GET", "/health", headers={"Host": "chat.example"})
    assert json.load(connection.getresponse()) == {"status": "ok", "running": 0, "queued": 0}
    connection.close()


# ---------------------------------------------------------------------- too many


def test_too_many_are_refused_and_told_when_to_come_again(served, client):
    before = served.engine.load().finished.get("cancelled", 0)
    with pytest.raises(openai.RateLimitError) as told:
        chat(client, n=16, max_tokens=LONG)
    assert told.value.code == "queue_full"
    assert int(told.value.response.headers["Retry-After"]) >= 1
    # All or none: those that were taken in before the queue was full are given up.
    assert idle(served).finished["cancelled"] == before + 5
    assert chat(client).choices[0].message.content


def test_the_official_client_tries_again_until_there_is_a_place(served, client):
    streams = [chat(client, max_tokens=200, stream=True) for _ in range(5)]
    patient = openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=20)
    with patient:
        assert chat(patient).choices[0].message.content == chat(client).choices[0].message.content
    for stream in streams:
        assert list(stream)[-1].choices[0].finish_reason == "length"


def test_many_at_a_time_get_what_each_gets_alone(served, client):
    prompts = [f"the {word}" for word in ("cat", "dog", "man", "mat", "well")]

    def ask(source, prompt, **more):
        return source.completions.create(
            model="tiny", prompt=prompt, max_tokens=40, seed=3, temperature=1.5, **more
        )

    alone = [ask(client, prompt).choices[0].text for prompt in prompts]

    async def streamed(source, prompt):
        return "".join([c.choices[0].text async for c in await ask(source, prompt, stream=True)])

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as source:
            return await asyncio.gather(*(streamed(source, prompt) for prompt in prompts))

    assert asyncio.run(all_at_once()) == alone
    assert len(set(alone)) == 5


# ---------------------------------------------------------------------- leaving


def test_a_client_that_times_out_frees_its_place(served, client):
    before = served.engine.load()
    with pytest.raises(openai.APITimeoutError):
        chat(client, max_tokens=LONG, timeout=0.3)
    after = idle(served)
    assert after.finished["cancelled"] == before.finished.get("cancelled", 0) + 1
    assert after.generated_tokens - before.generated_tokens < LONG


def test_a_client_that_leaves_a_stream_frees_its_place(served, client):
    before = served.engine.load()
    stream = chat(client, max_tokens=LONG, stream=True, n=2)
    for _ in range(6):
        next(stream)
    stream.close()
    after = idle(served)
    assert after.finished["cancelled"] == before.finished.get("cancelled", 0) + 2
    assert after.generated_tokens - before.generated_tokens < 2 * LONG


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_the_queue_frees_its_place_there(served, stream):
    running = [raw(served, stream=True) for _ in range(2)]
    until(lambda: served.engine.load().running == 2)
    waiting = raw(served, stream=stream)
    until(lambda: served.engine.load().queued == 1)
    waiting.close()
    until(lambda: served.engine.load().queued == 0)
    assert served.engine.load().running == 2
    for connection in running:
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_left_before_anything_began(served, stream):
    """The application alone, told that the client is gone before its first token."""
    before = served.engine.load()
    body = {"model": "tiny", "messages": CHAT, "max_tokens": LONG, "temperature": 0}
    messages = [
        {"type": "http.request", "body": json.dumps({**body, "stream": stream, "n": 2}).encode()},
        {"type": "http.disconnect"},
    ]
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(_):
        pass

    asyncio.run(served.app(scope, receive, send))
    after = idle(served)
    assert after.finished["cancelled"] == before.finished.get("cancelled", 0) + 2
    assert after.generated_tokens - before.generated_tokens < 2 * LONG


def test_whoever_waits_in_the_queue_is_told_so(served, monkeypatch):
    monkeypatch.setattr(wire, "KEEP_ALIVE_SECONDS", 0.05)
    running = [raw(served, stream=True, max_tokens=600) for _ in range(2)]
    until(lambda: served.engine.load().running == 2)
    waiting = raw(served, stream=True, max_tokens=2).getresponse()
    lines = waiting.read().decode().splitlines()
    assert ": waiting" in lines and lines[-2:] == ["data: [DONE]", ""]
    for connection in running:
        connection.close()


@contextmanager
def reading_nothing(served, max_tokens):
    """A client that asks for two streams in one and takes none of their bytes."""
    body = json.dumps(
        {"model": "tiny", "messages": CHAT, "max_tokens": max_tokens, "stream": True, "n": 2,
         "temperature": 0, "logprobs": True, "top_logprobs": 5}
    )  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", served.port))
        slow.sendall((head + body).encode())
        until(lambda: served.engine.load().running == 2)
        yield slow


def test_a_client_that_reads_nothing_holds_up_nobody(served, client):
    before = served.engine.load().finished.get("length", 0)
    with reading_nothing(served, 700):
        assert chat(client).choices[0].message.content, "others are answered"
        # Its tokens wait in the server; its places in the batch do not wait for it to read.
        until(lambda: served.engine.load().finished.get("length", 0) >= before + 3)


def test_a_client_that_reads_nothing_for_long_is_cut_off(served, monkeypatch):
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 0.1)
    before = served.engine.load().finished.get("cancelled", 0)
    with reading_nothing(served, 4000):
        until(lambda: served.engine.load().finished.get("cancelled", 0) == before + 2)


# ---------------------------------------------------------------------- dawdling


def test_a_body_that_does_not_arrive_is_given_up(served, monkeypatch):
    monkeypatch.setattr(wire, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=HANG) as slow:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        head += 'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"model": '
        slow.sendall(head.encode())
        answer = b""
        while part := slow.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408") and b"request_timeout" in answer


def test_a_client_that_leaves_in_the_middle_of_a_body(served, client):
    with socket.create_connection(("127.0.0.1", served.port), timeout=HANG) as gone:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        gone.sendall(
            (head + "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{").encode()
        )
    until(lambda: not served.running.server_state.tasks)
    assert chat(client).choices


@pytest.mark.parametrize("begun", [b"", b"POST /v1/comp"])
def test_a_head_that_does_not_arrive_is_given_up(served, monkeypatch, begun):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=HANG) as slow:
        slow.sendall(begun)
        assert slow.recv(100) == b"", "the server closes it"


def test_a_second_head_that_does_not_arrive_is_given_up_too(served, monkeypatch):
    with socket.create_connection(("127.0.0.1", served.port), timeout=HANG) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b'"queued":0}' not in answer:
            answer += slow.recv(65536)
        monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
        slow.sendall(b"GET /hea")
        assert slow.recv(100) == b""


def test_an_unused_connection_outlives_the_clients_own(served):
    """Or a request now and then goes into one that the server is closing."""
    kept = openai.DEFAULT_CONNECTION_LIMITS.keepalive_expiry
    assert served.running.config.timeout_keep_alive > 2 * kept


# ---------------------------------------------------------------------- metrics


def scrape(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANG)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    text = connection.getresponse().read().decode()
    connection.close()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_metrics_tell_what_happened(served, client):
    before = scrape(served)
    path = "/v1/chat/completions"
    usage = [chat(client).usage for _ in range(2)]
    with pytest.raises(openai.BadRequestError):
        chat(client, max_tokens=-1)
    after = scrape(served)

    def more(*name):
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert more("atoll_requests_total", path, "200") == 2
    assert more("atoll_requests_total", path, "400") == 1
    assert more("atoll_time_to_first_token_seconds_count") == 2
    assert more("atoll_request_seconds_count") == 2
    assert more("atoll_tokens_total", "generated") == 24
    cached = sum(one.prompt_tokens_details.cached_tokens for one in usage)
    assert more("atoll_tokens_total", "cached") == cached
    assert more("atoll_finished_total", "length") == 2
    assert 0 < more("atoll_steps_total") <= 24 + 2 * usage[0].prompt_tokens
    assert after["atoll_slots",] == 2 and after["atoll_queued_requests",] == 0
    assert after["atoll_open_requests",] == 1, "the scrape itself"
    assert after["atoll_cache_size_bytes",] > 0


def test_the_metrics_show_what_runs_and_waits(served):
    connections = [raw(served, stream=True) for _ in range(4)]
    until(lambda: (x := served.engine.load()).running == 2 and x.queued == 2)
    found = scrape(served)
    assert (found["atoll_running_requests",], found["atoll_queued_requests",]) == (2, 2)
    assert found["atoll_cache_used_bytes",] > 0
    for connection in connections:
        connection.close()
    assert idle(served)


# ---------------------------------------------------------------------- starting, stopping


def test_of_two_servers_that_load_for_one_port_the_second_is_refused(served):
    with server_module.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with server_module.listen("127.0.0.1", port) as second:  # nobody listens there yet
            first.listen()
            running = server_module.Server(served.app, served.engine)
            with pytest.raises(InputError, match="cannot listen there"):
                running.serve_until_signal(second)


def test_a_stopping_server_ends_streams_and_takes_nothing_in(loaded):
    with (
        serving(loaded, fast=True) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = chat(client, max_tokens=LONG, stream=True)
        next(stream)
        served.running.should_exit = True
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        with pytest.raises(openai.APIConnectionError):
            chat(client)


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(loaded, monkeypatch):
    monkeypatch.setattr(server_module, "_AFTER_GRACE", 0.3)
    with serving(loaded, key=KEY, fast=True) as served, reading_nothing(served, 4000):
        served.running.should_exit = True
        until(lambda: not served.running.server_state.connections)
    assert served.engine.load().finished["cancelled"] == 2
