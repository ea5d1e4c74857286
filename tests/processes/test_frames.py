"""Frames of the wire: whole or refused, whatever a peer sends and however it is cut."""

import contextlib
import os
import queue
import socket
import struct
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.crew import frames, wire
from atoll.crew.wire import Connection, ConnectionClosed, Message, ProtocolError

pytestmark = pytest.mark.processes

HANG = 30.0  # seconds: a guard against hanging, never a measure

slow_fuzz = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def pair():
    left, right = connection_pair()
    yield left, right
    left.close()
    right.close()


def connection_pair(**options):
    left, right = socket.socketpair()
    return Connection(left, peer="left", **options), Connection(right, peer="right", **options)


def test_every_kind_of_value_arrives_as_it_was_sent(pair):
    left, right = pair
    fields = {
        "nothing": None,
        "flag": True,
        "small": -1,
        "large": 2**63 - 1,
        "digest": 2**61 - 2,
        "loss": 0.1,
        "infinite": float("inf"),
        "text": "珊瑚 \x00 \U0001f3dd",
        "bytes": bytes(range(256)),
        "ranges": {"a": [[0, 3], [7, 9]], "b": []},
    }
    left.send("result", **fields)
    message = right.receive(HANG)
    assert message.kind == "result"
    assert dict(message) == fields
    assert "loss" in message and "gain" not in message and message.get("gain", 5) == 5


def test_a_missing_field_names_the_peer_the_kind_and_the_field(pair):
    left, right = pair
    left.send("result", loss=1.0)
    with pytest.raises(ProtocolError, match=r"right.*result.*'step'"):
        right.receive(HANG)["step"]


def test_frames_of_many_megabytes_pass_while_the_other_end_reads(pair):
    left, right = pair
    data = os.urandom(1 << 20) * 24
    sender = threading.Thread(target=lambda: left.send("big", data=data))
    sender.start()
    assert right.receive(HANG)["data"] == data
    sender.join()


def test_threads_that_send_at_once_do_not_mix_their_frames(pair):
    left, right = pair
    num_threads, num_messages = 8, 10  # frames larger than what a socket takes at once

    def send(number):
        for index in range(num_messages):
            left.send("part", sender=number, index=index, data=bytes([number]) * 400_000)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    seen = {number: [] for number in range(num_threads)}
    for _ in range(num_threads * num_messages):
        message = right.receive(HANG)
        assert message["data"] == bytes([message["sender"]]) * 400_000
        seen[message["sender"]].append(message["index"])
    for thread in threads:
        thread.join()
    assert all(indices == list(range(num_messages)) for indices in seen.values())


def test_a_timeout_in_the_middle_of_a_frame_loses_nothing():
    ours, theirs = socket.socketpair()
    connection = Connection(ours, peer="them")
    frame = frames.encode("slow", {"value": 7})
    for index in range(len(frame) - 1):
        theirs.sendall(frame[index : index + 1])
        with pytest.raises(TimeoutError):
            connection.receive(0)
    theirs.sendall(frame[-1:] + frame)
    assert connection.receive(HANG)["value"] == 7
    assert connection.receive(HANG)["value"] == 7
    theirs.close()
    with pytest.raises(ConnectionClosed, match=r"them hung up$"):
        connection.receive(HANG)
    assert connection.closed


def test_hanging_up_in_the_middle_of_a_frame_is_told():
    ours, theirs = socket.socketpair()
    connection = Connection(ours, peer="them")
    theirs.sendall(frames.encode("slow", {"value": 7})[:-1])
    theirs.close()
    with pytest.raises(ConnectionClosed, match="in the middle of a message"):
        connection.receive(HANG)


def test_a_frame_over_the_limit_is_not_sent_and_harms_nothing(pair):
    left, right = pair
    with pytest.raises(ProtocolError, match=r"'huge' message of .* was not sent"):
        left.send("huge", data=bytes(wire.MAX_FRAME_BYTES))
    left.send("small")
    assert right.receive(HANG).kind == "small"


@pytest.mark.parametrize("num_bytes", [0, wire.MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_an_announced_length_out_of_bounds_ends_the_connection(num_bytes):
    ours, theirs = socket.socketpair()
    connection = Connection(ours, peer="the stranger")
    theirs.sendall(struct.pack(">I", num_bytes) + b"data")
    with pytest.raises(ProtocolError, match=f"the stranger announced a frame of {num_bytes} bytes"):
        connection.receive(HANG)
    with pytest.raises(ConnectionClosed):
        connection.receive(HANG)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",  # never used by msgpack
        b"\x93\x01",  # an array cut short
        b"\x01\x02",  # two values
        b"\x91\x01",  # an array
        b"\x80",  # a map without a kind
        b"\x81\xa4kind\x01",  # a kind that is no text
        b"\x81\x01\xa4kind",  # a key that is no text
        b"\x81\xc4\x04kind\xa1a",  # a key of bytes
        b"\x82\xa4kind\xa1a\xa1b\xa2\xff\xfe",  # text that is not UTF-8
        b"\x82\xa4kind\xa1a\xa1b\xd4\x05\x00",  # an extension type
        b"\x91" * 5000,  # deep nesting
        b"\xdd\xff\xff\xff\xff",  # an array said to have four milliard entries
    ],
)
def test_malformed_bodies_are_refused_by_the_name_of_the_peer(body):
    with pytest.raises(ProtocolError, match="island x sent"):
        frames.decode(body, peer="island x")


@given(st.binary(max_size=300))
def test_fuzz_any_body_is_a_message_or_a_protocol_error(body):
    with contextlib.suppress(ProtocolError):
        message = frames.decode(body)
        assert isinstance(message, Message) and isinstance(message.kind, str)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
fieldsets = st.dictionaries(st.text().filter(lambda key: key != "kind"), values, max_size=4)


@slow_fuzz
@given(st.lists(st.tuples(st.text(), fieldsets), min_size=1, max_size=5), st.data())
def test_fuzz_messages_survive_any_cutting_of_the_stream(messages, data):
    stream = b"".join(frames.encode(kind, fields) for kind, fields in messages)
    ours, theirs = socket.socketpair()
    connection = Connection(ours, peer="them")
    received = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        theirs.sendall(stream[:cut])
        stream = stream[cut:]
        with contextlib.suppress(TimeoutError):
            while True:
                message = connection.receive(0)
                received.append((message.kind, dict(message)))
    assert received == messages
    connection.close()
    theirs.close()


@slow_fuzz
@given(st.binary(max_size=200), st.booleans())
def test_fuzz_a_stream_of_rubbish_ends_in_one_of_our_errors(rubbish, framed):
    ours, theirs = socket.socketpair()
    connection = Connection(ours, peer="them")
    theirs.sendall((struct.pack(">I", len(rubbish)) if framed else b"") + rubbish)
    theirs.close()
    with pytest.raises((ProtocolError, ConnectionClosed)):
        while True:
            connection.receive(HANG)
    assert connection.closed


# Ends of connections


def test_close_wakes_a_thread_that_receives(pair):
    left, _ = pair
    ends = queue.Queue()

    def receive():
        try:
            left.receive()
        except ConnectionClosed as error:
            ends.put(error)

    thread = threading.Thread(target=receive)
    thread.start()
    left.close()
    thread.join(HANG)
    assert isinstance(ends.get(timeout=HANG), ConnectionClosed)


def test_close_wakes_a_thread_that_sends(pair):
    left, _ = pair
    ends = queue.Queue()

    def send():
        try:
            while True:
                left.send("more", data=bytes(1 << 20))
        except ConnectionClosed as error:
            ends.put(error)

    thread = threading.Thread(target=send)
    thread.start()
    left.close()
    thread.join(HANG)
    assert isinstance(ends.get(timeout=HANG), ConnectionClosed)


def test_a_peer_that_takes_nothing_does_not_block_a_sender_for_ever():
    left, right = connection_pair(send_timeout=0.2)
    with pytest.raises(ConnectionClosed, match="takes nothing: waited"):
        while True:
            left.send("more", data=bytes(1 << 20))
    assert left.closed
    right.close()


def test_sending_to_a_peer_that_left_is_told_and_close_may_be_repeated(pair):
    left, right = pair
    right.close()
    with pytest.raises(ConnectionClosed):
        while True:
            left.send("more")
    left.close()
    left.close()


def test_the_last_words_of_a_peer_that_left_are_heard_after_a_failed_send():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = Connection(socket.create_connection(server.getsockname()), peer="the dying")
        theirs = Connection(server.accept()[0], peer="us")
        ours.send("assign")  # never read: the peer's system answers with a reset
        for index in range(5):
            theirs.send("result", index=index)
        theirs.send("failed", traceback="Traceback ...")
        theirs.close()
        with pytest.raises(ConnectionClosed, match="the dying is gone"):
            while True:
                ours.send("assign")
        assert [ours.receive(HANG)["index"] for _ in range(5)] == list(range(5))
        assert ours.receive(HANG)["traceback"] == "Traceback ..."
        with pytest.raises(ConnectionClosed, match="the dying"):
            ours.receive(HANG)
        ours.close()
