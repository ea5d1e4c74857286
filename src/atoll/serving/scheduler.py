"""Who is computed next: admission, fair order, and what a step consists of. No torch, no clock.

What it is: the state of every request in numbers, and rules. What it is not: a thread (engine.py)
or a page (cache.py).

1. *Order between clients.* A client's account is the tokens that were computed for it; the client
   with the smallest account is admitted next, within a client the oldest request first. Who comes
   back after a pause starts at the smallest account of those present (Sheng et al. 2024, "Fairness
   in Serving Large Language Models", section 4).
2. *Admission by memory.* A request is admitted when the pages for its prompt and all tokens that
   it may generate are available, so that nothing admitted ever has to stop for memory. One that
   does not fit is passed by at most MOST_PASSED smaller ones.
3. *A step* holds one token of every request that generates; the rows left are divided evenly among
   the prompts that are being read, so that a long one neither stalls nor is stalled.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from atoll.serving.cache import Node, Pages

MOST_PASSED = 16
"""Requests that may be admitted before one that came to its turn and did not fit."""

WORTH_COPYING = 16
"""A page's beginning is copied if it holds at least one token in this many of the page."""


Order = int | tuple[int, int, int]


@dataclass(slots=True, eq=False)
class Work:
    """One request as the scheduler sees it. ``tokens`` are the prompt and what was generated;
    the keys and values of the first ``num_done`` of them are in its pages."""

    tokens: list[int]
    max_tokens: int
    client: str = ""
    num_prompt: int = 0
    num_done: int = 0
    num_cached: int = 0
    num_passed: int = 0
    path: list[Node] = field(default_factory=list)  # pages shared through the tree of prefixes
    own: list[int] = field(default_factory=list)  # pages after those, not shared yet

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)

    @property
    def pages(self) -> list[int]:
        """All its pages in order."""
        return [node.page for node in self.path] + self.own

    @property
    def most_positions(self) -> int:
        """Positions that it may need: the last token generated is never read."""
        return self.num_prompt + self.max_tokens - 1


@dataclass(frozen=True, slots=True)
class Turn:
    """What a step does for one request: computes its tokens [first, last)."""

    work: Work
    first: int
    last: int

    @property
    def wanted(self) -> bool:
        """Whether the token after them is to be chosen."""
        return self.last == len(self.work.tokens)


@dataclass(frozen=True, slots=True)
class Step:
    """What to do, in this order: the ``orders``, then the ``turns`` in one pass of the model.

    An order is a page to clear, or (source page, target page, positions): copy the first positions
    and clear the rest; the two may be one page. A page is cleared when it is taken, so that what
    another request left there can never matter: a probability of zero times a NaN would.
    """

    orders: list[Order]
    turns: list[Turn]


class Scheduler:
    """Queue, running requests and their pages. At most ``max_running`` at a time, and a step of
    at most ``max_rows`` tokens, which must be at least twice as many."""

    def __init__(self, pages: Pages, *, max_running: int, max_rows: int) -> None:
        assert max_rows >= 2 * max_running
        self.pages = pages
        self.max_running, self.max_rows = max_running, max_rows
        self.running: list[Work] = []
        self._queues: OrderedDict[str, deque[Work]] = OrderedDict()
        self._accounts: dict[str, int] = {}
        self._num_promised = 0  # pages that running requests may still take
        self._orders: list[Order] = []

    @property
    def num_queued(self) -> int:
        """Requests that wait for admission."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def num_used(self) -> int:
        """Pages that running requests hold or were promised."""
        return self.pages.num_pages - self.pages.num_available + self._num_promised

    def num_pages_of(self, work: Work) -> int:
        """Pages that a request needs at most."""
        return -(-work.most_positions // self.pages.size)

    def add(self, work: Work) -> None:
        """Queue a request; the caller has seen to it that it fits into all pages together."""
        assert self.num_pages_of(work) <= self.pages.num_pages
        if work.client not in self._accounts:
            self._accounts[work.client] = min(self._accounts.values(), default=0)
        self._queues.setdefault(work.client, deque()).append(work)

    def remove(self, work: Work, *, keep: bool = True) -> None:
        """Take a request out, wherever it is; its pages are available again at once.

        With ``keep`` what they hold serves requests that begin alike; without, it is forgotten.
        """
        if work in self.running:
            self.running.remove(work)
            self._num_promised -= self.num_pages_of(work) - len(work.path) - len(work.own)
            self._leave(work, keep=keep)
        else:
            queue = self._queues.get(work.client, deque())
            if work in queue:
                queue.remove(work)
                if not queue:
                    del self._queues[work.client]
        present = {other.client for other in self.running} | self._queues.keys()
        self._accounts = {name: sum_ for name, sum_ in self._accounts.items() if name in present}

    def next(self) -> Step:
        """Admit whom one can, and choose what the next step computes; an empty step: nothing."""
        for work in self._admit():
            self._begin(work)
        turns = []
        reading = []
        for work in self.running:
            if work.num_done == len(work.tokens) - 1 and work.num_done >= work.num_prompt:
                turns.append(self._turn(work, 1))
            else:
                reading.append(work)
        rows = self.max_rows - len(turns)
        reading.sort(key=lambda work: len(work.tokens) - work.num_done)
        for index, work in enumerate(reading):
            share = max(1, rows // (len(reading) - index))
            turn = self._turn(work, min(share, rows))
            rows -= turn.last - turn.first
            turns.append(turn)
            if rows == 0:
                break
        orders, self._orders = self._orders, []
        return Step(orders, turns)

    def done(self, step: Step) -> None:
        """A step's keys and values are in their pages; full ones can be shared from now on."""
        for turn in step.turns:
            work = turn.work
            work.num_done = turn.last
            self._accounts[work.client] += turn.last - turn.first
            size = self.pages.size
            while work.own and len(work.path) * size + size <= work.num_done:
                first = len(work.path) * size
                tokens = tuple(work.tokens[first : first + size])
                work.path.append(self.pages.enter(work.path, tokens, work.own.pop(0)))

    def _turn(self, work: Work, most: int) -> Turn:
        """The next tokens of a request, at most ``most``, with the pages for them taken."""
        last = min(len(work.tokens), work.num_done + most)
        while (len(work.path) + len(work.own)) * self.pages.size < last:
            self._take(work)
        return Turn(work, work.num_done, last)

    def _admit(self) -> Iterator[Work]:
        """Requests that start now, in fair order, each already counted among the running ones."""
        waiting: set[str] = set()
        while len(self.running) < self.max_running:
            clients = [name for name in self._queues if name not in waiting]
            if not clients:
                return
            client = min(clients, key=lambda name: self._accounts[name])
            work = self._queues[client][0]
            if not self._fits(work):
                if work.num_passed >= MOST_PASSED:
                    return
                waiting.add(client)
                continue
            for name in waiting:
                self._queues[name][0].num_passed += 1
            self._queues[client].popleft()
            if not self._queues[client]:
                del self._queues[client]
            else:
                self._queues.move_to_end(client)
            self.running.append(work)
            yield work

    def _fits(self, work: Work) -> bool:
        shared = self._match(work)[0]
        needed = self.num_pages_of(work) - len(shared) + self.pages.num_unused(shared)
        return needed + self._num_promised <= self.pages.num_available

    def _match(self, work: Work) -> tuple[Sequence[Node], Node | None, int]:
        """What is there of its prompt; at least its last token is computed again, for logits."""
        found = self.pages.match(work.tokens[:-1])
        worth = found.num_copied * WORTH_COPYING >= self.pages.size
        return found.shared, found.copied if worth else None, found.num_copied

    def _begin(self, work: Work) -> None:
        """Give an admitted request what is there of its prompt."""
        shared, copied, num = self._match(work)
        self.pages.use(shared)
        work.path = list(shared)
        work.num_done = len(shared) * self.pages.size
        self._num_promised += self.num_pages_of(work) - len(shared)
        if copied is not None and len(shared) < self.num_pages_of(work):
            self._take(work)
            self._orders[-1] = (copied.page, work.own[0], num)
            work.num_done += num
        work.num_cached = work.num_done

    def _take(self, work: Work) -> None:
        """Give a request one more page of those it was promised."""
        page = self.pages.take()
        self._orders.append(page)
        work.own.append(page)
        self._num_promised -= 1

    def _leave(self, work: Work, *, keep: bool) -> None:
        """Give all pages back; the begun last page is entered first, if it is to be kept."""
        full = len(work.path) * self.pages.size
        if keep and work.own and work.num_done > full:
            tokens = tuple(work.tokens[full : work.num_done])
            work.path.append(self.pages.enter(work.path, tokens, work.own.pop(0)))
        for page in work.own:
            self.pages.give_back(page)
        self.pages.leave(work.path)
        if not keep:
            self.pages.drop(work.path)
        work.path, work.own = [], []
