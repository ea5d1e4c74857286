"""Islands on the nodes of a Ray cluster: an actor beside each, which starts it and tells its end.

Ray is one launcher of islands, not the protocol: an actor starts its island by the same command
line as any launcher, and the island dials the pilot, which stays outside Ray, in the process that
made the crew. What the others are for: `local` starts islands on this machine and needs no Ray.
Not here: which chip wants which resource; whoever makes the crew says so in `Need`.

ray is imported inside functions only: it is an extra.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from atoll.crew import wire
from atoll.crew.local import LocalCrew, log_name, read_tail
from atoll.errors import InputError

SITE = "site:"
"""Before a site's name: the custom resource of a node that stands there."""
LOOK_SECONDS = 0.2
"""Between two looks at what an island has written."""
KILL_SECONDS = 2.0
"""How long an actor may take to kill its island; then it is killed itself."""

_CRUMB = 0.001  # of a site's resource: it only says where, and is never used up
_TOKEN_FILE = "--token-file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one island process asks of its node; processes of the same `island` share one node.

    `accelerator` is Ray's name of the chip's resource, of which it takes one; empty for none.
    `site` matters where the cluster has resources "site:NAME"; empty for anywhere.
    """

    island: str
    cpus: int
    accelerator: str = ""
    site: str = ""


@dataclass(slots=True, kw_only=True)
class _Island:
    """One actor and what is known of its island."""

    name: str
    actor: Any
    log: Path
    log_start: int
    thread: threading.Thread | None = None
    killer: threading.Thread | None = None
    status: int | None = None


class Berth:
    """The actor beside one island process, on its node; the process dies with it.

    Where the actor ends by force (its node dies), what the island itself had started may be left
    (Atoll's islands start nothing), and a small temporary folder is.
    """

    def __init__(self) -> None:
        self._local: LocalCrew | None = None
        self._name = ""

    def kill(self) -> None:
        """Kill the island and its children; `run` then ends."""
        if self._local is not None:
            self._local.kill(self._name)

    def run(
        self, name: str, argv: Sequence[str], *, crew: Mapping[str, Any],
        environment: Mapping[str, str], token: str,
    ) -> Iterator[bytes | int]:  # fmt: skip
        """Start the island, yield what it writes as it writes it, and at last its exit status.

        `crew` are arguments of LocalCrew. The token is written to a file of this node where the
        pilot's own cannot be read here.
        """
        with tempfile.TemporaryDirectory(prefix="atoll-island-") as text:
            folder = Path(text)
            argv = [*argv, *_device_here()]
            if not _holds(Path(argv[argv.index(_TOKEN_FILE) + 1]), token):
                wire.write_private(folder / "token", token)
                argv += [_TOKEN_FILE, str(folder / "token")]  # the last one counts
            with LocalCrew(logs=folder, **crew) as local:
                local.start(name, argv, environment)
                self._name, self._local = name, local
                num_read, ended = 0, False
                while not ended:
                    ended = local.wait(LOOK_SECONDS)
                    piece = _read_from(local.log_path(name), num_read)
                    num_read += len(piece)
                    if piece:
                        yield piece
                if not num_read:
                    yield local.log_tail(name).encode()
                status = local.exited()[name]
        yield status  # whoever takes it may kill this actor: nothing of it is left by now


class RayCrew:
    """The islands of one pilot on a Ray cluster; use as `with RayCrew(...) as crew`.

    `needs` names every island that may be started and says what it asks of a node. The other
    arguments are those of `LocalCrew`, and so are the methods. Making one connects to the cluster
    at `address` (None: the one that runs on this machine); `host` is this node's address there.
    Actors end with this process, and islands with their actors.

    InputError without the package, without a cluster, or where no node can take an island.
    """

    def __init__(
        self,
        *,
        address: str | None,
        needs: Mapping[str, Need],
        entry: str,
        logs: Path,
        preload: Sequence[str] = ("torch",),
        python_path: Sequence[Path] = (),
        on_exit: Callable[[str, int], None] | None = None,
    ) -> None:
        self._ray, self._mine = _connect(address)
        self.host = str(self._ray.util.get_node_ip_address())
        self._needs = dict(needs)
        self._crew = {"entry": entry, "preload": preload, "python_path": python_path}
        self._logs = logs
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._islands: dict[str, _Island] = {}
        self._groups: dict[str, Any] = {}
        self._stopped = False

    def __enter__(self) -> Self:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._sited = any(key.startswith(SITE) for node in nodes for key in node)
        asked = {name: self._resources(name) for name in self._needs}
        try:
            _require_room(asked, self._needs, nodes)
        except InputError:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start an island on some node; returns at once. `environment` is what its chip adds.

        It waits for a free node as long as it takes. A name may be used again after its end.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        token = wire.read_token_file(Path(argv[list(argv).index(_TOKEN_FILE) + 1]))
        log = self._logs / log_name(name)
        actor = self._ray.remote(Berth).options(**self._options(name)).remote()
        island = _Island(
            name=name, actor=actor, log=log, log_start=log.stat().st_size if log.exists() else 0
        )
        with self._lock:
            assert not self._stopped
            old = self._islands.get(name)
            assert old is None or old.status is not None, f"{name} is running"
            self._islands[name] = island
        output = actor.run.options(num_returns="streaming").remote(
            name, list(argv), crew=self._crew, environment=dict(environment), token=token
        )
        island.thread = threading.Thread(
            target=self._follow, args=(island, output), name=f"output of {name}", daemon=True
        )
        island.thread.start()

    def _resources(self, name: str) -> dict[str, float]:
        """What the process `name` asks of its node, by Ray's names."""
        need = self._needs[name]
        asked = {"CPU": float(need.cpus)}
        if need.accelerator:
            asked[need.accelerator] = 1.0
        if need.site and self._sited:
            asked[SITE + need.site] = _CRUMB
        return asked

    def _options(self, name: str) -> dict[str, Any]:
        """The options of an actor: its resources, and the node of its island."""
        asked = self._resources(name)
        options: dict[str, Any] = {
            "max_restarts": 0,
            "max_concurrency": 2,
            "num_cpus": asked.pop("CPU"),
        }
        if "GPU" in asked:
            options["num_gpus"] = asked.pop("GPU")
        options["resources"] = asked
        island = self._needs[name].island
        together = [other for other, need in self._needs.items() if need.island == island]
        if len(together) > 1:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            if island not in self._groups:
                bundles = [self._resources(other) for other in together]
                self._groups[island] = self._ray.util.placement_group(bundles, "STRICT_PACK")
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self._groups[island],
                placement_group_bundle_index=together.index(name),
            )
        return options

    def _follow(self, island: _Island, output: Iterator[Any]) -> None:
        """Keep what an island writes, until it or its actor has ended; in a thread."""
        errors = self._ray.exceptions
        status: int = -signal.SIGKILL
        try:
            for reference in output:
                piece = self._ray.get(reference)
                if isinstance(piece, int):
                    status = piece
                else:
                    _append(island.log, piece)
        except errors.RayError as error:
            if not isinstance(error, errors.RayActorError):
                status = 1  # the actor lives: it could not start the island
            _append(island.log, f"Ray: {error}\n".encode())
        self._ray.kill(island.actor)  # its place is free for the next one
        with self._change:
            island.status = status
            self._change.notify_all()
        if self._on_exit is not None:
            self._on_exit(island.name, status)

    def running(self) -> list[str]:
        """Names of the islands that were started and have not ended, begun or not."""
        with self._lock:
            return [island.name for island in self._islands.values() if island.status is None]

    def log_tail(self, name: str, num_lines: int = 40) -> str:
        """The last lines that `name` has written since its last start, and what Ray said of it."""
        with self._lock:
            island = self._islands[name]
        text = read_tail(island.log, start=island.log_start)
        return "\n".join(text.splitlines()[-num_lines:])

    def kill(self, name: str) -> None:
        """Kill `name` and its children at once; nothing happens if it has ended.

        Its actor does it; one that does not answer, or has no node yet, is killed itself.
        """
        with self._lock:
            island = self._islands[name]
        if island.status is None and island.killer is None:
            island.killer = threading.Thread(target=self._kill, args=(island,), daemon=True)
            island.killer.start()

    def _kill(self, island: _Island) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            killed = island.actor.kill.remote()
            self._ray.wait([killed], timeout=KILL_SECONDS)
            if island.thread is not None:
                island.thread.join(KILL_SECONDS)
        if island.status is None:
            self._ray.kill(island.actor)

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds` until all islands have ended by themselves; True if so."""
        deadline = time.monotonic() + seconds
        with self._change:
            while any(island.status is None for island in self._islands.values()):
                left = deadline - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    return False
        return True

    def stop(self) -> None:
        """Kill whoever has not ended and leave the cluster. May be repeated."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            islands = list(self._islands.values())
        for name in self.running():
            self.kill(name)
        for island in islands:
            for thread in filter(None, (island.killer, island.thread)):
                thread.join(2 * KILL_SECONDS + 1.0)  # with Ray gone they must ask it nothing
        for group in self._groups.values():
            self._ray.util.remove_placement_group(group)
        if self._mine:
            self._ray.shutdown()


def require_package() -> None:
    """InputError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        fix = "pip install 'atoll[ray]', here and on every node"
        raise InputError("this engine needs the package ray", key="--engine", value="ray", fix=fix)


def _connect(address: str | None) -> tuple[Any, bool]:
    """The module ray, connected, and whether it was us who connected it."""
    require_package()
    import ray

    if ray.is_initialized():
        return ray, False
    fix = "start one with `ray start --head`, or give --address HOST:PORT of one that runs"
    if (address or "").startswith("ray://"):
        fix = "run this command on a node of the cluster, where its islands can dial it"
        message = "Ray's client does not do: the islands could not reach this machine"
        raise InputError(message, key="--address", value=address, fix=fix)
    address = address or "auto"
    try:
        if address not in ("auto", "local"):  # Ray itself would go on trying for minutes
            socket.create_connection(wire.parse_address(address), timeout=10.0).close()
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            logging_level="warning",
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"no Ray cluster can be joined: {text}"
        raise InputError(message, key="--address", value=address, fix=fix) from error
    return ray, True


def _require_room(
    asked: Mapping[str, Mapping[str, float]],
    needs: Mapping[str, Need],
    nodes: Sequence[Mapping[str, float]],
) -> None:
    """InputError if an island fits on no node, or all together are more than the cluster has.

    `asked` and `nodes` are amounts by Ray's names of resources.
    """
    alike = Counter(_told(node) for node in nodes)
    has = "; ".join(f"{count} with {what}" for what, count in sorted(alike.items()))
    fix = f"the cluster's nodes: {has or 'none'}"
    by_island: dict[str, dict[str, float]] = {}
    total: dict[str, float] = {}
    for name, amounts in asked.items():
        whole = by_island.setdefault(needs[name].island, {})
        for key, amount in amounts.items():
            whole[key] = whole.get(key, 0.0) + amount
            total[key] = total.get(key, 0.0) + amount
    for island, amounts in by_island.items():
        if not any(_fits(amounts, node) for node in nodes):
            message = f"no node of the Ray cluster has what island {island!r} needs"
            raise InputError(message, key="island", value=_told(amounts), fix=fix)
    everything = {key: sum(node.get(key, 0.0) for node in nodes) for key in total}
    if not _fits(total, everything):
        message = "the islands together need more than the Ray cluster has"
        raise InputError(message, key="island", value=_told(total), fix=fix)


def _fits(amounts: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(key, 0.0) >= amount for key, amount in amounts.items())


def _told(amounts: Mapping[str, float]) -> str:
    """Amounts of resources for a person: "2 CPU, 1 GPU, site:north"."""
    words = []
    for key, amount in sorted(amounts.items()):
        if key.startswith(SITE):
            words.append(key)
        elif key not in ("memory", "object_store_memory") and not key.startswith("node:"):
            words.append(f"{amount:g} {key}")
    return ", ".join(words) or "nothing"


def _device_here() -> list[str]:
    """The index of the device where Ray shows a process only the one it was given."""
    import ray

    given = ray.get_runtime_context().get_accelerator_ids()
    return ["--device-index", "0"] if any(given.values()) else []


def _holds(path: Path, token: str) -> bool:
    """Whether the pilot's token file can be read here."""
    try:
        return wire.read_token_file(path) == token
    except InputError:
        return False


def _read_from(path: Path, start: int) -> bytes:
    """What a file holds from `start` on; nothing if it is not there yet."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


def _append(path: Path, piece: bytes) -> None:
    """Add to an island's output; a full disk must not hide its end."""
    with contextlib.suppress(OSError), path.open("ab") as file:
        file.write(piece)
