"""What the islands of test_crew.py do; imported in those processes only."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(argv):
    return globals()[argv[0]](*argv[1:])


def facts(path, variable):
    """Write all that a test wants to know of this process."""
    torch_was_there = "torch" in sys.modules
    gradient_digest = gradient()
    import torch

    found = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "variable": os.environ.get(variable),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch_was_there": torch_was_there,
        "interrupt_ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "terminate_default": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "stdin": sys.stdin.read(),
        "argv": sys.argv,
        "files": open_files(),
        "gradient": gradient_digest,
        "threads": torch.get_num_threads(),
    }
    write(path, found)
    return 0


def gradient():
    """A digest of a gradient that two threads computed together."""
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(1)
    weight = (torch.randn(300, 400) * 0.05).requires_grad_()
    tokens = torch.randint(0, 300, (4, 200))
    logits = torch.nn.functional.embedding(tokens, weight) @ weight.T
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    ).backward()
    return hashlib.sha256(weight.grad.numpy().tobytes()).hexdigest()


def print_gradient():
    print(gradient())
    return 0


def open_files():
    """What the open file numbers of this process point at."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            names.append(str(link.readlink()))
    return names


def write(path, value):
    """Write so that whoever sees the file sees all of it."""
    whole = Path(path + ".part")
    whole.write_text(json.dumps(value))
    whole.rename(path)


def crash():
    print("about to divide")
    raise ZeroDivisionError("the island of this test divides by zero")


def leave(status):
    raise SystemExit(int(status) if status.isdigit() else status)


def fault():
    os.kill(os.getpid(), signal.SIGSEGV)


def wait(path):
    """Say where this process is and stay; a child of its own stays with it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write(path, {"pid": os.getpid(), "child": child.pid, "preloader": os.getppid()})
    time.sleep(600)


def abandon(path):
    """Crash and leave a child behind."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write(path, {"child": child.pid})
    raise RuntimeError("left a child behind")


def obey(path):
    """Leave politely when asked."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    write(path, {"pid": os.getpid()})
    time.sleep(600)


def refuse(path):
    """Stay, even when asked to leave."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write(path, {"pid": os.getpid()})
    time.sleep(600)


def speak(*lines):
    for line in lines:
        print(line)
    return 0


def dial_in(address, token_file, name):
    """Greet the pilot, double what it sends until it says stop."""
    from atoll.crew import wire

    token = wire.read_token_file(Path(token_file))
    connection, _ = wire.dial(address, token=token, name=name, timeout=60)
    while True:
        message = connection.receive(60)
        if message.kind == "stop":
            return 0
        connection.send("result", value=2 * message["value"])


def add_up(store_path, rank, count):
    """Add integers with the other islands through gloo, and print the sum."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    store = dist.FileStore(store_path, int(count))
    group = dist.ProcessGroupGloo(store, int(rank), int(count), timedelta(seconds=60))
    numbers = torch.full((100_000,), 10 ** int(rank), dtype=torch.int32)
    group.allreduce(numbers).wait()
    print(numbers.unique().tolist())
    return 0


def on_a_node(argv):
    """An island of test_ray.py, which is given the flags of a real one and then what to do."""
    flags, words = argv[: argv.index("--do")], argv[argv.index("--do") + 1 :]
    appended = [words.index(w) for w in ("--token-file", "--device-index") if w in words]
    if appended:
        words, flags = words[: min(appended)], flags + words[min(appended) :]
    if words[0] != "facts":
        return main(words)
    last = {flags[index]: flags[index + 1] for index in range(0, len(flags), 2)}
    token = Path(last["--token-file"])
    found = {
        "pid": os.getpid(),
        "variable": os.environ.get(words[2]),
        "device_index": last["--device-index"],
        "token_file": str(token),
        "token": token.read_text().strip(),
        "mode": oct(token.stat().st_mode)[-3:],
        "command": Path("/proc/self/cmdline").read_text(),
    }
    write(words[1], found)
    if words[3:] == ["stay"]:
        time.sleep(600)
    return 0
