"""The exchange, bucket by bucket: every element once, whatever the order of the work, on real gloo.

The members are threads of this process with groups of their own.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributed

from atoll.errors import ExchangeError
from atoll.training import exchange
from atoll.training.accumulator import IntegerSums
from atoll.training.exchange import OpenExchange, buckets_of

HOST = torch.device("cpu")
SHAPES = {"head": (30, 4), "a": (7,), "b": (16, 3), "c": (1,), "d": (50,), "e": (5, 5), "f": (9,)}
WIDTHS = (64, 32, 32, 64, 32, 32, 32)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    """As if the tensors were large: several buckets, and pieces smaller than a bucket."""
    monkeypatch.setattr(exchange, "EARLY_BYTES", 128)
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 160)


@pytest.fixture
def groups():
    store = distributed.HashStore()

    def join(rank):
        options = distributed.ProcessGroupGloo._Options()
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        return distributed.ProcessGroupGloo(store, rank, 3, options)

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(join, range(3)))


def sums(seed):
    made = IntegerSums(SHAPES, WIDTHS, HOST)
    drawn = torch.Generator().manual_seed(seed)
    for flat in made.flats.values():
        flat.random_(-(2**28), 2**28, generator=drawn)
    return made


def test_buckets_cover_every_element_exactly_once_and_name_its_tensors():
    made = sums(0)
    buckets = buckets_of(made)
    assert len(buckets) >= 4
    for width, flat in made.flats.items():
        count = torch.zeros(flat.numel(), dtype=torch.int64)
        for bucket in buckets:
            if bucket.width == width:
                count[bucket.first : bucket.last] += 1
                inside = [made.spans[i] for i in bucket.tensors]
                assert all(s.width == width for s in inside)
                assert sum(s.last - s.first for s in inside) == bucket.last - bucket.first
        assert bool((count == 1).all())
    named = [tensor for bucket in buckets for tensor in bucket.tensors]
    assert sorted(named) == list(range(len(SHAPES)))


def test_the_last_tensors_leave_first():
    """Backward passes finish with the last layers first."""
    ends = [max(bucket.tensors) for bucket in buckets_of(sums(0)) if bucket.width == 32]
    assert ends == sorted(ends, reverse=True)


def member(group, mine, *, num_grains, seed, skipped=()):
    """One island's part: the tensors' gradients come in an order of their own, from two lanes."""
    drawn = random.Random(seed)
    into = mine.like()
    final = {width: flat.clone() for width, flat in mine.flats.items()}
    work = [i for i in range(len(SHAPES)) if i not in skipped for _ in range(num_grains)]
    drawn.shuffle(work)
    # Until a tensor's last gradient is in, its sum is something else: sending it early would show.
    left = {i: work.count(i) for i in work}
    for index in left:
        mine.views[index].fill_(12345)
    open_exchange = OpenExchange(
        group, mine, into, host=lambda tensor: tensor, num_grains=num_grains, away=threading.Event()
    )
    lock = threading.Lock()

    def add(index):
        with lock:
            left[index] -= 1
            if not left[index]:
                span = mine.spans[index]
                mine.views[index].copy_(final[span.width][span.first : span.last])
        open_exchange.added(index)

    with ThreadPoolExecutor(2) as lanes:
        list(lanes.map(add, work))
    open_exchange.finish()
    assert all(torch.equal(mine.flats[w], final[w]) for w in final), "the own sums must stay"
    return into


@pytest.mark.parametrize("seed", range(4))
def test_all_members_hold_the_sum_whatever_the_order_of_work(groups, seed):
    """One member has three grains, one has one, and one has none."""
    parts = [sums(10 * seed + rank) for rank in range(3)]
    expected = {w: sum(part.flats[w] for part in parts) for w in (32, 64)}
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(member, groups[rank], parts[rank], num_grains=count, seed=seed + rank)
            for rank, count in enumerate([3, 1, 0])
        ]
        results = [job.result(30) for job in jobs]
    for into in results:
        assert all(torch.equal(into.flats[w], expected[w]) for w in expected)


def test_a_tensor_that_gets_no_gradient_does_not_hold_up_the_rest(groups):
    parts = [sums(rank) for rank in range(3)]
    expected = {w: sum(part.flats[w] for part in parts) for w in (32, 64)}
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(
                member, groups[rank], parts[rank], num_grains=2, seed=rank, skipped=(3, rank)
            )
            for rank in range(3)
        ]
        for job in jobs:
            into = job.result(30)
            assert all(torch.equal(into.flats[w], expected[w]) for w in expected)


def test_a_member_that_is_gone_is_an_exchange_error(groups):
    parts = [sums(rank) for rank in range(2)]
    gone = groups.pop()
    del gone  # closes its sockets
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(member, group, part, num_grains=1, seed=rank)
            for rank, (group, part) in enumerate(zip(groups, parts, strict=True))
        ]
        failed = [job.exception(30) for job in jobs]
    assert any(isinstance(error, ExchangeError) for error in failed)
    assert all(error is None or isinstance(error, ExchangeError) for error in failed)
