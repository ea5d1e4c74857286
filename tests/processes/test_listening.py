"""The pilot's door with many, slow, stopped and broken peers: one thread, and nobody waits."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from tests.processes.test_wire import (
    HANG,
    TOKEN,
    dial,
    next_event,
    raw,
    until,
    wait_until_nobody_is_known,
)

from atoll.crew import frames, wire
from atoll.crew.wire import Arrival, ConnectionClosed, Listener
from atoll.errors import RunError

pytestmark = pytest.mark.processes


@pytest.fixture
def listener():
    with Listener(token=TOKEN) as listening:
        yield listening


def arrived(listener, name="a"):
    """Both ends of a new island: its own, and the pilot's."""
    connection, _ = dial(listener, name)
    what = next_event(listener).what
    assert isinstance(what, Arrival)
    return connection, what.connection


def test_what_an_island_sends_as_lists_the_pilot_hears_as_tuples(listener):
    connection, ours = arrived(listener)
    connection.send("result", ranges=[[0, 3], []], by={"a": [1]})
    assert dict(next_event(listener).what) == {"ranges": ((0, 3), ()), "by": {"a": (1,)}}
    ours.send("assign", ranges=[(0, 3)])
    assert connection.receive(HANG)["ranges"] == [[0, 3]]
    connection.close()


def test_words_said_with_the_hello_are_heard_after_it(listener):
    """An island need not wait for its welcome; all may come in one packet."""
    hello = frames.encode("hello", {"protocol": wire.PROTOCOL, "token": TOKEN, "name": "a"})
    alive, result = frames.encode(wire.ALIVE, {}), frames.encode("result", {"step": 1})
    with raw(listener) as connected:
        connected.sendall(hello + alive + result + alive + result[:5])
        assert isinstance(next_event(listener).what, Arrival)
        assert next_event(listener).what["step"] == 1
        connected.sendall(result[5:] + alive)
        assert next_event(listener).what["step"] == 1
    assert isinstance(next_event(listener).what, ConnectionClosed)


def test_an_alive_cut_in_two_is_no_message_and_counts_as_heard(listener):
    connected = raw(listener)
    hello = {"protocol": wire.PROTOCOL, "token": TOKEN, "name": "a"}
    connected.sendall(frames.encode("hello", hello))
    line = next_event(listener).what.connection
    alive = frames.encode(wire.ALIVE, {})
    for piece in (alive[:3], alive[3:], alive, alive + alive[:1], alive[1:]):
        line.heard_at = 0.0
        connected.sendall(piece)
        until(lambda: line.heard_at > 0.0)
    connected.sendall(frames.encode("result", {}))
    assert next_event(listener).what.kind == "result"
    connected.close()


def test_half_a_frame_and_then_silence_holds_up_nobody(listener):
    frame = frames.encode("result", {"data": bytes(1 << 20)})
    hello = {"protocol": wire.PROTOCOL, "token": TOKEN, "name": "half"}
    half = raw(listener)
    half.sendall(frames.encode("hello", hello))
    assert isinstance(next_event(listener).what, Arrival)
    half.sendall(frame[: 1 << 19])
    connection, ours = arrived(listener, "whole")
    for number in range(100):
        ours.send("assign", number=number)
        connection.send("result", number=connection.receive(HANG)["number"])
        name, message = next_event(listener)
        assert name == "whole" and message["number"] == number
    half.sendall(frame[1 << 19 :])
    name, message = next_event(listener)
    assert name == "half" and len(message["data"]) == 1 << 20
    half.sendall(frame[:-1])
    half.shutdown(socket.SHUT_WR)
    name, ended = next_event(listener)
    assert name == "half" and "in the middle of a message" in str(ended)
    half.close()
    connection.close()


def test_a_peer_that_never_reads_holds_up_nobody_and_is_hung_up_on():
    with Listener(token=TOKEN, send_timeout=0.5) as listener:
        deaf, to_deaf = arrived(listener, "deaf")
        connection, ours = arrived(listener, "well")
        for number in range(20):  # far more than the system takes for a peer
            to_deaf.send("assign", data=bytes(1 << 20))
            ours.send("assign", number=number)
            assert connection.receive(HANG)["number"] == number
        name, ended = next_event(listener)
        assert name == "deaf" and "deaf" in str(ended) and "takes nothing: waited 0.5" in str(ended)
        with pytest.raises(ConnectionClosed, match="takes nothing"):
            to_deaf.send("assign")
        connection.send("result")
        assert next_event(listener).name == "well"
        assert not listener._waiting
        deaf.close()
        connection.close()


def test_no_more_than_the_largest_frame_waits_for_a_peer(listener):
    deaf, to_deaf = arrived(listener, "deaf")
    data = bytes(1 << 22)
    with pytest.raises(ConnectionClosed, match=r"deaf.*takes nothing: \d+ bytes wait for it"):
        for _ in range(100):
            to_deaf.send("assign", data=data)
    assert isinstance(next_event(listener).what, ConnectionClosed)
    deaf.close()
    wait_until_nobody_is_known(listener)


def test_the_largest_frame_reaches_a_peer_that_reads_late(listener):
    connection, ours = arrived(listener)
    data = os.urandom(1 << 20) * 63
    ours.send("assign", data=data)
    assert connection.receive(HANG)["data"] == data
    connection.send("result", data=data)
    assert next_event(listener).what["data"] == data
    connection.close()


def test_a_slow_reader_gets_all_in_order_from_many_threads(listener):
    connection, ours = arrived(listener)
    sizes = [1, 70_000, 3, 400_000, 9]

    def send(number):
        for index, size in enumerate(sizes):
            ours.send("part", sender=number, index=index, data=bytes([number]) * size)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)  # none of them waits for the reader
    seen = {number: [] for number in range(8)}
    for _ in range(8 * len(sizes)):
        message = connection.receive(HANG)
        assert message["data"] == bytes([message["sender"]]) * sizes[message["index"]]
        seen[message["sender"]].append(message["index"])
    assert all(indices == list(range(len(sizes))) for indices in seen.values())
    ours.send("last")
    assert connection.receive(HANG).kind == "last"
    until(lambda: not listener._waiting)
    connection.close()


STOPPABLE = """
import sys
from atoll.crew import wire
connection, _ = wire.dial(sys.argv[1], token=sys.argv[2], name="stopped", timeout=30)
while True:
    connection.send("result", size=len(connection.receive()["data"]))
"""


def test_sending_to_a_stopped_process_does_not_wait_and_it_goes_on_when_it_may(listener):
    process = subprocess.Popen([sys.executable, "-c", STOPPABLE, listener.address, TOKEN])
    try:
        stopped = next_event(listener).what.connection
        connection, ours = arrived(listener, "well")
        os.kill(process.pid, signal.SIGSTOP)
        for _ in range(20):
            stopped.send("assign", data=bytes(1 << 20))
        ours.send("assign")
        assert connection.receive(HANG).kind == "assign"
        connection.send("result")
        assert next_event(listener).name == "well"
        assert listener._waiting == {stopped}
        os.kill(process.pid, signal.SIGCONT)
        sizes = [next_event(listener).what["size"] for _ in range(20)]
        assert sizes == [1 << 20] * 20
        os.kill(process.pid, signal.SIGSTOP)
        for _ in range(20):
            stopped.send("assign", data=bytes(1 << 20))
        stopped.close()  # the pilot has done with it; what waits for it is forgotten
        name, ended = next_event(listener)
        assert name == "stopped" and isinstance(ended, ConnectionClosed)
        until(lambda: not listener._waiting)
        connection.close()
    finally:
        process.kill()
        process.wait()


def test_three_hundred_islands_are_read_by_one_thread(listener):
    num_threads = threading.active_count()
    ends = {f"i{number}": dial(listener, f"i{number}")[0] for number in range(300)}
    lines = {name: what.connection for name, what in (next_event(listener) for _ in ends)}
    assert set(lines) == set(ends)
    assert threading.active_count() <= num_threads  # fewer if one of another test has ended
    for turn in range(3):
        frame = frames.encode("assign", {"turn": turn})
        for line in lines.values():
            line.send_frame(frame)
        for name, end in ends.items():
            assert end.receive(HANG)["turn"] == turn
            end.send(wire.ALIVE)
            end.send("result", turn=turn, by=name)
        said = [next_event(listener) for _ in ends]
        assert {name for name, _ in said} == set(ends)
        assert all(what["by"] == name and what["turn"] == turn for name, what in said)
    for number, name in enumerate(ends):
        (ends if number % 2 else lines)[name].close()
    over = [next_event(listener) for _ in ends]
    assert {name for name, _ in over} == set(ends)
    assert all(isinstance(what, ConnectionClosed) for _, what in over)
    wait_until_nobody_is_known(listener)
    assert listener.events.empty()
    for end in ends.values():
        end.close()


def test_last_words_are_heard_after_a_failed_send_of_the_pilot(listener):
    connection, ours = arrived(listener)
    ours.send("assign")  # never read: the peer's system answers with a reset
    for index in range(5):
        connection.send("result", index=index)
    connection.send("failed", traceback="Traceback ...")
    connection.close()
    with pytest.raises(ConnectionClosed, match="island a"):
        while True:
            ours.send("assign")
    assert [next_event(listener).what["index"] for _ in range(5)] == list(range(5))
    assert next_event(listener).what["traceback"] == "Traceback ..."
    assert isinstance(next_event(listener).what, ConnectionClosed)


def test_a_hello_that_breaks_whoever_looks_at_it_ends_only_its_own_connection(capsys):
    def admit(hello):
        return {}[hello["name"]] if hello["name"] == "odd" else None

    with Listener(token=TOKEN, admit=admit) as listener:
        connection, _ = arrived(listener)
        with pytest.raises(RunError, match="no welcome"):
            dial(listener, "odd")
        assert "KeyError" in capsys.readouterr().err
        connection.send("result")
        assert next_event(listener).what.kind == "result"
        arrived(listener, "b")[0].close()
        connection.close()


CROWDED = """
import resource, socket, sys
from atoll.crew import wire
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
with wire.Listener(token="t", hello_timeout=60.0) as listener:
    address = wire.parse_address(listener.address)
    first, _ = wire.dial(listener.address, token="t", name="first", timeout=30)
    line = listener.events.get(timeout=30).what.connection
    strangers = []
    try:
        while True:
            strangers.append(socket.create_connection(address, timeout=30))
    except OSError:
        pass
    for number in range(50):  # whoever is connected already notices nothing
        line.send("assign", number=number)
        assert first.receive(30)["number"] == number
        first.send("result", number=number)
        assert listener.events.get(timeout=30).what["number"] == number
    for stranger in strangers:
        stranger.close()
    second, _ = wire.dial(listener.address, token="t", name="second", timeout=30)
    assert listener.events.get(timeout=30).name == "second"
print("well")
"""


def test_a_pilot_that_is_out_of_files_serves_whom_it_has_and_accepts_again_later():
    words = [sys.executable, "-c", CROWDED]
    done = subprocess.run(words, capture_output=True, text=True, timeout=4 * HANG, check=False)
    assert done.returncode == 0 and done.stdout == "well\n", done.stderr
