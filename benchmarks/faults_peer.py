"""The peers of faults.py: a plain data-parallel loop over our decoder, made to survive a kill.

`ddp`: DistributedDataParallel on gloo under torchrun, a checkpoint every so many steps, and a
restart of all ranks from the last one. `ft`: torchft's Manager, one process a replica group. Tokens
are drawn at random: only time is measured. Needs torch, pydantic and this checkout's sources.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from atoll.model import Model
from atoll.modeling.decoder import Decoder


class Log:
    """Appends a line for each committed step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="ascii")

    def commit(self, step: int, **facts: Any) -> None:
        """Step `step` is done."""
        self._file.write(json.dumps({"step": step, "time": time.time(), **facts}) + "\n")


def main() -> None:
    """One rank or replica, until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["ddp", "ft"])
    parser.add_argument("--model", required=True, help="the model as JSON")
    parser.add_argument("--sequences", type=int, required=True, help="of a step, over all ranks")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--replica", type=int, default=0)
    parser.add_argument("--lighthouse", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = Model.model_validate_json(options.model)
    decoder = Decoder(model)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, fused=True)
    drawn = torch.Generator().manual_seed(os.getpid())
    shape = (options.sequences // 3, model.context + 1)
    tokens = torch.randint(0, model.resolved_vocab, shape, generator=drawn)
    (ddp if options.mode == "ddp" else ft)(options, decoder, optimizer, tokens)


def ddp(
    options: argparse.Namespace, decoder: Decoder, optimizer: torch.optim.Optimizer, tokens: Tensor
) -> None:
    """Restart from a checkpoint."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # The agent's store outlives the ranks: without a prefix of its own a new rank may read the
    # address that a dead one left there.
    store = distributed.TCPStore(master, port, size, is_master=False)
    tried = distributed.PrefixStore(f"try-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    distributed.init_process_group("gloo", store=tried, rank=rank, world_size=size)
    (options.folder / f"pid-{rank}").write_text(str(os.getpid()), encoding="ascii")
    kept, step = options.folder / "checkpoint.pt", 0
    if kept.exists():
        state = torch.load(kept)
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    log = Log(options.folder / f"commits-{rank}.jsonl")
    wrapped = torch.nn.parallel.DistributedDataParallel(Loss(decoder))
    while True:
        optimizer.zero_grad()
        wrapped(tokens).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        log.commit(step)
        if step % options.every == 0 and rank == 0:
            state = {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step}, kept.with_suffix(".tmp"))
            kept.with_suffix(".tmp").replace(kept)


class Loss(torch.nn.Module):
    """The mean loss, as a module: DDP's hooks look for `forward`."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor) -> Tensor:
        """Nats a token."""
        loss: Tensor = self.decoder.loss(tokens)
        return loss / (tokens.shape[0] * (tokens.shape[1] - 1))


def ft(
    options: argparse.Namespace, decoder: Decoder, optimizer: torch.optim.Optimizer, tokens: Tensor
) -> None:
    """torchft: the survivors go on, who comes back is healed by one of them."""
    from datetime import timedelta

    from torchft import Manager, ProcessGroupGloo

    def load(state: dict[str, Any]) -> None:
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])

    store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=30)),
        load_state_dict=load,
        state_dict=lambda: {
            "decoder": decoder.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        min_replica_size=1,
        use_async_quorum=False,
        timeout=timedelta(seconds=30),
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
        lighthouse_addr=options.lighthouse,
        replica_id=f"replica-{options.replica}-",
        hostname="localhost",
    )
    (options.folder / f"pid-{options.replica}").write_text(str(os.getpid()), encoding="ascii")
    log = Log(options.folder / f"commits-{options.replica}.jsonl")
    while True:
        manager.start_quorum()
        optimizer.zero_grad()
        loss = decoder.loss(tokens) / (tokens.shape[0] * (tokens.shape[1] - 1))
        loss.backward()
        gradients = [p.grad for p in decoder.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        manager.allreduce(flat).wait()
        first = 0
        for gradient in gradients:
            gradient.copy_(flat[first : first + gradient.numel()].reshape(gradient.shape))
            first += gradient.numel()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        if manager.should_commit():
            optimizer.step()
            log.commit(manager.current_step(), members=manager.num_participants())


if __name__ == "__main__":
    main()
