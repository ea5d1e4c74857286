"""`atoll chat` against bad input and against servers that answer badly: told, never a traceback."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atoll.cli import main

MODELS = b'{"data": [{"id": "m"}]}'
DONE = b"data: [DONE]\n\n"


def event(**choice):
    """One event of a stream: ``content`` and ``reason`` of its only choice."""
    delta = {"content": choice["content"]} if "content" in choice else None
    content = {"choices": [{"delta": delta, "finish_reason": choice.get("reason")}]}
    return f"data: {json.dumps(content)}\n\n".encode()


@contextmanager
def answering(*, models=MODELS, missing=0, stream=DONE):
    """A server that says these bytes, ``missing`` fewer of its models than it promises; its
    address, and the bodies of the requests to it."""
    bodies = []

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def say(self, content, missing=0):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + missing))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self.say(models, missing)

        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.say(stream)

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


@pytest.fixture
def chat(monkeypatch, capsys):
    """`atoll chat --url` with bytes from a pipe: its exit code, stdout and stderr."""

    def run(url, *arguments, said=b"hello\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said), "utf-8"))
        code = main(["chat", "--url", url, *arguments])
        found = capsys.readouterr()
        assert "this is a bug" not in found.err
        return code, found.out, found.err

    return run


@pytest.mark.parametrize(
    "url",
    ["http://", "http://h:port", "http://a b", "http://[::1", "http://h/x y", "http://h:0", "h:80"],
)
def test_what_is_no_address_is_wrong_input(url, chat):
    code, out, err = chat(url)
    assert code == 2 and not out and "--url" in err


@pytest.mark.parametrize(
    "answer", [{"models": b"<html>"}, {"models": b"\xff\xfe{}"}, {"missing": 9}, {"models": b"[]"}]
)
def test_a_server_that_names_no_model_is_told(answer, chat):
    with answering(**answer) as (url, _):
        code, _, err = chat(url)
    assert code == 1 and "names no model" in err


@pytest.mark.parametrize(
    "stream",
    [b"data: [1]\n\n", b'data: {"choices": 1}\n\n', b"data: x\n\n", event(content="half"), b""],
)
def test_an_answer_that_is_none_is_told_and_the_chat_goes_on(stream, chat):
    with answering(stream=stream) as (url, bodies):
        code, out, err = chat(url, said=b"one\ntwo\n")
    assert code == 1 and not out
    assert len(err.splitlines()) == 2 and "the server" in err
    assert bodies[1]["messages"] == [{"role": "user", "content": "two"}]


def test_what_is_no_text_is_left_out_and_does_not_come_back(chat):
    stream = event(content="a\ud83d b") + event(reason="stop") + DONE
    with answering(stream=stream) as (url, bodies):
        code, out, err = chat(url, said=b"a\xff\xfe\none\ntwo\n")
        assert code == 1 and "not UTF-8" in err
        assert out == "a\ufffd b\na\ufffd b\n"
        assert [one["messages"][-1]["content"] for one in bodies] == ["one", "two"]


def test_a_name_that_cannot_be_written_is_told(chat):
    with answering() as (url, _):
        code, _, err = chat(url, said=b"/save ~nobody-of-this-name/x\n/save a\0b\n/save\n")
    assert code == 1 and err.count("cannot write") == 3


def test_a_terminal_is_shown_the_answer_and_obeys_none_of_it():
    attack = "\x1b]0;renamed\x07\x1b[2J\x9b2J at 12:100:00\n\tend"
    stream = event(content=attack, reason="stop") + DONE
    ours, theirs = pty.openpty()
    with answering(stream=stream) as (url, _):
        command = [sys.executable, "-m", "atoll", "chat", "--url", url]
        environment = {**os.environ, "TERM": "dumb"}
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        seen = b""
        try:
            os.write(ours, b"hello\n/quit\n")
            while b"end\r\n" not in seen:
                assert select.select([ours], [], [], 60)[0], seen
                seen += os.read(ours, 65536)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    assert b"]0;renamed[2J2J at 12:100:00\r\n" in seen, "and no emoji is made of :100:"


def test_without_a_stdin_there_is_nothing_to_say(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with answering() as (url, bodies):
        assert main(["chat", "--url", url]) == 0
    assert not bodies
