"""Schedule: who computes which micro-batch when in a pipeline (1F1B, plain or interleaved).

For pictures: the plan's seconds come from `cost` and `chain`. Plain 1F1B is PipeDream-Flush
(arXiv:2006.09503, section 2.2), interleaved the order of arXiv:2104.04473, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One piece of work on one stage; times in the unit of the stages."""

    stage: int
    microbatch: int
    chunk: int
    backward: bool
    begin: float
    end: float


Task = tuple[bool, int, int]
"""(backward, micro-batch, chunk)."""


def order_of(stage: int, stages: int, microbatches: int, chunks: int) -> list[Task]:
    """What a stage computes one after the other.

    With chunks the micro-batches must be a multiple of the stages.
    """
    assert chunks == 1 or microbatches % stages == 0
    total = microbatches * chunks
    ahead = stages - stage - 1
    if chunks > 1:
        ahead = 2 * ahead + (chunks - 1) * stages
    ahead = min(ahead, total)
    forward = [(False, *_task(k, stages, chunks)) for k in range(total)]
    backward = [
        (True, microbatch, chunks - 1 - chunk)
        for microbatch, chunk in (_task(k, stages, chunks) for k in range(total))
    ]
    order: list[Task] = list(forward[:ahead])
    for index in range(ahead, total):
        order += [forward[index], backward[index - ahead]]
    return order + backward[total - ahead :]


def _task(k: int, stages: int, chunks: int) -> tuple[int, int]:
    """(micro-batch, chunk) of the k-th forward: groups of `stages`, chunk by chunk."""
    if chunks == 1:
        return k, 0
    group, inside = divmod(k, stages * chunks)
    chunk, member = divmod(inside, stages)
    return group * stages + member, chunk


def schedule(
    stages: Sequence[tuple[float, float]], microbatches: int, *, chunks: int = 1
) -> list[Box]:
    """All work of a step; `stages` are (forward, backward) times of a whole micro-batch."""
    count = len(stages)
    orders = [order_of(s, count, microbatches, chunks) for s in range(count)]
    done: dict[tuple[int, Task], float] = {}
    free, next_of = [0.0] * count, [0] * count
    boxes: list[Box] = []
    left = sum(map(len, orders))
    while left:
        before = left
        for stage, order in enumerate(orders):
            while next_of[stage] < len(order):
                task = order[next_of[stage]]
                needs = _needs(stage, task, count, chunks)
                if needs is not None and needs not in done:
                    break
                begin = max(free[stage], done[needs] if needs is not None else 0.0)
                end = begin + stages[stage][task[0]] / chunks
                done[stage, task], free[stage] = end, end
                next_of[stage] += 1
                left -= 1
                boxes.append(
                    Box(stage=stage, backward=task[0], microbatch=task[1], chunk=task[2],
                        begin=begin, end=end)
                )  # fmt: skip
        assert left < before, "a pipeline waits for itself"
    return boxes


def _needs(stage: int, task: Task, stages: int, chunks: int) -> tuple[int, Task] | None:
    """The work that must be done before; None for the first of all."""
    backward, microbatch, chunk = task
    if not backward:
        if stage > 0:
            return stage - 1, (False, microbatch, chunk)
        return (stages - 1, (False, microbatch, chunk - 1)) if chunk > 0 else None
    if stage < stages - 1:
        return stage + 1, (True, microbatch, chunk)
    if chunk < chunks - 1:
        return 0, (True, microbatch, chunk + 1)
    return stage, (False, microbatch, chunk)
