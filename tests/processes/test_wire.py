"""The listener of the wire: the greeting, addresses, tokens, and strangers of every kind."""

import contextlib
import os
import queue
import socket
import stat
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.processes.test_frames import fieldsets, slow_fuzz, values

from atoll.crew import frames, wire
from atoll.crew.wire import Arrival, ConnectionClosed, Listener, Message
from atoll.errors import InputError, RunError

pytestmark = pytest.mark.processes

TOKEN = "a-token-for-tests"
HANG = 30.0  # seconds: a guard against hanging, never a measure


@pytest.fixture
def listener():
    with Listener(token=TOKEN, welcome={"run": "r1"}) as listening:
        yield listening


def dial(listener, name="a", **options):
    return wire.dial(listener.address, token=TOKEN, name=name, timeout=HANG, **options)


def next_event(listener):
    return listener.events.get(timeout=HANG)


def raw(listener):
    host, port = wire.parse_address(listener.address)
    connected = socket.create_connection((host, port), timeout=HANG)
    connected.settimeout(HANG)
    return connected


def read_to_end(connected):
    """All that the other end says before it hangs up, which this waits for."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connected.recv(65536):
            data += chunk
    return data


def greet_by_hand(listener, **fields):
    """The answer to a hello of exactly these fields."""
    with raw(listener) as connected:
        connected.sendall(frames.encode("hello", fields))
        return frames.decode(read_to_end(connected)[4:])


# The greeting


def test_an_island_arrives_speaks_and_leaves(listener):
    connection, welcome = dial(listener, torch="2.13.0", facts={"kind": "k1"})
    assert (
        welcome["name"] == "a" and welcome["run"] == "r1" and welcome["protocol"] == wire.PROTOCOL
    )
    name, arrival = next_event(listener)
    assert name == "a" and isinstance(arrival, Arrival)
    assert arrival.hello["torch"] == "2.13.0" and arrival.hello["facts"] == {"kind": "k1"}
    assert arrival.hello["pid"] == os.getpid() and arrival.hello["host"] == socket.gethostname()
    arrival.connection.send("assign", step=1)
    assert connection.receive(HANG)["step"] == 1
    connection.send("result", step=1)
    name, message = next_event(listener)
    assert name == "a" and isinstance(message, Message) and message["step"] == 1
    connection.close()
    name, ended = next_event(listener)
    assert name == "a" and isinstance(ended, ConnectionClosed)
    assert listener.events.empty()


def test_an_island_without_a_name_gets_one_of_its_host_and_process(listener):
    connection, welcome = dial(listener, name=None)
    assert welcome["name"] == f"{socket.gethostname()}-{os.getpid()}"
    connection.close()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "\u73ca", None, 5, [TOKEN]])
def test_a_wrong_token_is_refused_and_repeated_nowhere(listener, token):
    answer = greet_by_hand(listener, protocol=wire.PROTOCOL, token=token, name="a")
    assert answer.kind == "refused" and "token" in answer["reason"]
    assert TOKEN not in repr(dict(answer))
    assert listener.events.empty()


def test_dial_with_a_wrong_token_says_so_and_keeps_both_tokens_to_itself(listener):
    with pytest.raises(RunError, match="refused this island: wrong token") as caught:
        wire.dial(listener.address, token="secret-of-another-run", name="a", timeout=HANG)
    assert TOKEN not in str(caught.value) and "secret-of-another-run" not in str(caught.value)


def test_the_token_does_not_reach_the_pilot_s_events(listener):
    connection, _ = dial(listener)
    _, arrival = next_event(listener)
    assert "token" not in arrival.hello and TOKEN not in repr(arrival)
    connection.close()


@pytest.mark.parametrize("protocol", [0, 1, 3, "2", None])
def test_another_protocol_is_refused_with_both_versions(listener, protocol):
    answer = greet_by_hand(listener, protocol=protocol, token=TOKEN, name="a")
    assert answer.kind == "refused"
    assert (
        repr(protocol) in answer["reason"]
        and f"the pilot speaks {wire.PROTOCOL}" in answer["reason"]
    )


def test_the_first_message_must_be_a_hello(listener):
    with raw(listener) as connected:
        connected.sendall(frames.encode("result", {"token": TOKEN, "protocol": wire.PROTOCOL}))
        assert frames.decode(read_to_end(connected)[4:]).kind == "refused"
    assert listener.events.empty()


@pytest.mark.parametrize("name", ["n" * 5000, "two\nlines", "\x1b[2J"])
def test_a_name_that_would_spoil_a_log_is_refused(listener, name):
    answer = greet_by_hand(listener, protocol=wire.PROTOCOL, token=TOKEN, name=name)
    assert answer.kind == "refused" and "printable" in answer["reason"]


def test_a_name_is_taken_while_its_island_is_connected(listener):
    first, _ = dial(listener)
    with pytest.raises(RunError, match="'a' is connected already"):
        dial(listener)
    assert isinstance(next_event(listener).what, Arrival)
    first.close()
    assert isinstance(next_event(listener).what, ConnectionClosed)
    second = dial_until_free(listener)
    assert isinstance(next_event(listener).what, Arrival)
    second.close()


def dial_until_free(listener):
    """The name is given back just after the event of its end."""
    for _ in range(1000):
        with contextlib.suppress(RunError):
            return dial(listener)[0]
    raise AssertionError("the name was never given back")


def test_the_pilot_may_refuse_by_what_the_hello_says():
    def admit(hello):
        return None if hello["name"] in ("a", "b") else f"the fleet has no island {hello['name']!r}"

    with Listener(token=TOKEN, admit=admit) as listener:
        with pytest.raises(RunError, match="the fleet has no island 'c'"):
            dial(listener, "c")
        dial(listener, "b")[0].close()


# Strangers


def test_a_silent_connection_blocks_nobody_and_is_dropped():
    with Listener(token=TOKEN, hello_timeout=0.5) as listener:
        silent = [raw(listener) for _ in range(5)]
        half = raw(listener)
        half.sendall(frames.encode("hello", {"token": TOKEN, "protocol": wire.PROTOCOL})[:-1])
        dial(listener)[0].close()
        for connected in [*silent, half]:
            assert read_to_end(connected) == b""
            connected.close()


def test_a_frame_of_a_stranger_has_a_small_limit(listener):
    with raw(listener) as connected:
        connected.sendall(struct.pack(">I", wire.MAX_HELLO_BYTES + 1))
        assert read_to_end(connected) == b""
    connection, _ = dial(listener)
    next_event(listener)
    connection.send("large", data=bytes(wire.MAX_HELLO_BYTES * 4))  # an island may send it
    assert next_event(listener).what.kind == "large"
    connection.close()


def test_an_island_that_announces_a_huge_frame_is_dropped_by_name(listener):
    connected = raw(listener)
    connected.sendall(
        frames.encode("hello", {"protocol": wire.PROTOCOL, "token": TOKEN, "name": "a"})
    )
    assert isinstance(next_event(listener).what, Arrival)
    connected.sendall(struct.pack(">I", 2**31))
    name, ended = next_event(listener)
    assert name == "a" and isinstance(ended, ConnectionClosed)
    assert "island a" in str(ended) and str(2**31) in str(ended)
    connected.close()


def test_fifty_islands_and_fifty_strangers_at_once(listener):
    connections = {}
    strangers = [raw(listener) for _ in range(50)]
    for number, stranger in enumerate(strangers):
        stranger.sendall(os.urandom(number))

    def arrive(number):
        connection, welcome = dial(listener, f"island-{number}")
        connections[welcome["name"]] = connection
        connection.send("result", number=number)

    threads = [threading.Thread(target=arrive, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    arrived, said = set(), {}
    while len(said) < 50:
        name, what = next_event(listener)
        if isinstance(what, Arrival):
            assert name not in said
            arrived.add(name)
        else:
            said[name] = what["number"]
    assert said == {f"island-{number}": number for number in range(50)} and arrived == set(said)
    for connection in [*connections.values(), *strangers]:
        connection.close()


@slow_fuzz
@given(
    st.lists(
        st.binary(max_size=80)
        | st.builds(frames.encode, st.text(max_size=5), fieldsets)
        | st.builds(
            lambda fields: frames.encode(
                "hello", {**fields, "protocol": wire.PROTOCOL, "token": TOKEN}
            ),
            st.fixed_dictionaries({}, optional={"name": values, "pid": values, "facts": values}),
        ),
        max_size=4,
    )
)
def test_fuzz_no_stranger_brings_the_listener_down(listener, pieces):
    with raw(listener) as connected, contextlib.suppress(OSError):
        for piece in pieces:
            connected.sendall(piece)
        connected.shutdown(socket.SHUT_WR)
        read_to_end(connected)
    connection, _ = dial(listener, "the right one")
    while next_event(listener).name != "the right one":
        pass
    connection.close()
    while not isinstance(next_event(listener).what, ConnectionClosed):
        pass
    wait_until_nobody_is_known(listener)


def wait_until_nobody_is_known(listener):
    until(lambda: not (listener._lines or listener._names or listener._greeting))
    assert not listener._waiting


def until(done):
    deadline = time.monotonic() + HANG
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_the_listener_tells_its_islands_and_may_be_repeated():
    listener = Listener(token=TOKEN)
    connection, _ = dial(listener)
    stranger = raw(listener)
    listener.close()
    listener.close()
    with pytest.raises(ConnectionClosed):
        connection.receive(HANG)
    assert read_to_end(stranger) == b""
    stranger.close()
    with pytest.raises(RunError, match="no pilot answers"):
        wire.dial(listener.address, token=TOKEN, timeout=0.2)


# Dialling and addresses


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":4711", "host:x", "host:65536", "host:-1", "::1", "1:2:3"]
)
def test_what_is_no_address_is_an_input_error(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        wire.dial(address, token=TOKEN, timeout=HANG)


def test_port_zero_can_be_listened_on_but_not_dialled(listener):
    assert wire.parse_address(listener.address)[1] > 0
    with pytest.raises(InputError, match="port 0"):
        wire.dial("127.0.0.1:0", token=TOKEN, timeout=HANG)


def test_addresses_are_written_as_they_are_read():
    for text in ["127.0.0.1:4711", "pilot.example:1", "[::1]:65535"]:
        assert wire.format_address(*wire.parse_address(text)) == text


def test_an_address_in_use_is_an_input_error(listener):
    with pytest.raises(InputError, match="cannot listen on"):
        Listener(listener.address, token=TOKEN)


def test_an_island_may_be_started_before_its_pilot():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = wire.format_address(*reserved.getsockname())
    welcomes = queue.Queue()

    def arrive():
        connection, welcome = wire.dial(address, token=TOKEN, name="early", timeout=HANG)
        welcomes.put(welcome["name"])
        connection.close()

    thread = threading.Thread(target=arrive)
    thread.start()
    with Listener(address, token=TOKEN):
        assert welcomes.get(timeout=HANG) == "early"
        thread.join(HANG)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x00\x00\x00\x01\x00"]
)
def test_dialling_something_else_than_a_pilot_is_a_clear_error(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            accepted, _ = server.accept()
            accepted.recv(65536)
            accepted.sendall(answer)
            accepted.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RunError, match="no welcome from the pilot at"):
            wire.dial(wire.format_address(*server.getsockname()), token=TOKEN, timeout=HANG)
        thread.join(HANG)


def test_a_pilot_that_says_nothing_is_not_waited_for_for_ever():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(RunError, match="in time"):
        wire.dial(wire.format_address(*server.getsockname()), token=TOKEN, timeout=0.3)


# Token files


def test_a_token_file_is_for_its_owner_alone_and_new_every_time(tmp_path):
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    token = wire.write_token_file(path)
    assert len(bytes.fromhex(token)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert wire.read_token_file(path) == token
    assert wire.write_token_file(path) != token


def test_a_token_file_that_is_a_link_is_replaced_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    path = tmp_path / "token"
    path.symlink_to(elsewhere)
    wire.write_token_file(path)
    assert elsewhere.read_text() == "untouched" and not path.is_symlink()


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff\xfe", b"x" * 5000])
def test_a_file_without_one_token_is_an_input_error(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(InputError, match="token") as caught:
        wire.read_token_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_token_file_or_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot read the token file"):
        wire.read_token_file(tmp_path / "token")
    with pytest.raises(InputError, match="cannot write the token file"):
        wire.write_token_file(tmp_path / "nowhere" / "token")
