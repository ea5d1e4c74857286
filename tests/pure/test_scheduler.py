"""The scheduler's laws, on any order of events: pages are never lost or shared wrongly, all end."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.serving.cache import Node, Pages
from atoll.serving.scheduler import MOST_PASSED, Scheduler, Work

PAGE = 4


class Played:
    """Plays the engine: whatever a step computes becomes the content of its pages.

    ``held`` is, for every page and position, the whole prefix of tokens that the keys and values
    there were computed from: what a real page's bits depend on.
    """

    def __init__(self, num_pages: int, max_running: int, max_rows: int) -> None:
        self.scheduler = Scheduler(
            Pages(num_pages, PAGE), max_running=max_running, max_rows=max_rows
        )
        self.held: dict[tuple[int, int], tuple[int, ...]] = {}
        self.ended: list[Work] = []

    def step(self) -> int:
        """One step; every token chosen is a function of the text so far. Returns its tokens."""
        step = self.scheduler.next()
        for order in step.orders:
            source, target, num = (order, order, 0) if isinstance(order, int) else order
            for at in range(PAGE):
                prefix = self.held.get((source, at)) if at < num else None
                self.held.pop((target, at), None)
                if prefix is not None:
                    self.held[target, at] = prefix
        rows = sum(turn.last - turn.first for turn in step.turns)
        assert rows <= self.scheduler.max_rows
        assert len({turn.work for turn in step.turns}) == len(step.turns)
        for turn in step.turns:
            assert turn.first == turn.work.num_done < turn.last
            pages = turn.work.pages
            for position in range(turn.last):
                page, at = pages[position // PAGE], position % PAGE
                prefix = tuple(turn.work.tokens[: position + 1])
                if position >= turn.first:
                    assert (page, at) not in self.held, "a page that somebody else filled"
                    self.held[page, at] = prefix
                assert self.held[page, at] == prefix, "another text's keys"
        self.scheduler.done(step)
        for turn in step.turns:
            if turn.wanted:
                turn.work.tokens.append(sum(turn.work.tokens) % 3)
                if len(turn.work.tokens) == turn.work.num_prompt + turn.work.max_tokens:
                    self.end(turn.work)
        self.check()
        return rows

    def end(self, work: Work, *, keep: bool = True) -> None:
        self.scheduler.remove(work, keep=keep)
        self.ended.append(work)
        self.check()

    def check(self) -> None:
        """Every page is somewhere exactly once; users are counted right."""
        pages = self.scheduler.pages
        users: Counter[int] = Counter()
        own: list[int] = []
        for work in self.scheduler.running:
            users.update(node.page for node in work.path)
            own += work.own
        tree = list(nodes_below(pages._root))
        everywhere = [*pages._free, *own, *(node.page for node in tree)]
        assert sorted(everywhere) == list(range(pages.num_pages))
        for node in tree:
            assert node.num_users == users[node.page]
            assert node.num_users or node.page in pages._unused
        assert 0 <= self.scheduler._num_promised <= pages.num_available
        promised = sum(
            self.scheduler.num_pages_of(work) - len(work.pages) for work in self.scheduler.running
        )
        assert self.scheduler._num_promised == promised


def nodes_below(node: Node) -> list[Node]:
    return [found for child in node.children.values() for found in (child, *nodes_below(child))]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(3, 14), st.integers(1, 4))
def test_whatever_happens_pages_are_right_and_all_end(
    draw: random.Random, num_pages: int, max_running: int
) -> None:
    played = Played(num_pages, max_running, 2 * max_running + draw.randrange(6))
    scheduler = played.scheduler
    texts = [[draw.randrange(3) for _ in range(30)] for _ in range(2)]
    added: list[Work] = []
    for _ in range(40):
        kind = draw.random()
        if kind < 0.4:
            most = num_pages * PAGE
            length = draw.randint(1, min(24, most - 1))
            prompt = draw.choice(texts)[: max(1, length - draw.randrange(5))]
            prompt += [draw.randrange(3) for _ in range(length - len(prompt))]
            if draw.random() < 0.3 and played.ended:
                prompt = draw.choice(played.ended).tokens[: most - 1]
            work = Work(list(prompt), draw.randint(1, most - len(prompt)), draw.choice("abc"))
            scheduler.add(work)
            added.append(work)
        elif kind < 0.5 and (live := [work for work in added if work not in played.ended]):
            played.end(draw.choice(live), keep=draw.random() < 0.7)
        else:
            played.step()
    for _ in range(5000):
        if len(played.ended) == len(added):
            break
        assert played.step() > 0, "somebody waits for ever"
    assert {id(work) for work in played.ended} == {id(work) for work in added}
    assert scheduler.num_used == 0 and scheduler.num_queued == 0 and not scheduler.running
    assert scheduler.pages.num_available == num_pages and not scheduler._accounts


def test_a_client_with_many_requests_does_not_hold_up_another() -> None:
    played = Played(100, 1, 8)
    many = [Work([1] * 5, 4, "many") for _ in range(10)]
    few = [Work([2] * 5, 4, "few") for _ in range(2)]
    for work in (*many, *few):
        played.scheduler.add(work)
    while len(played.ended) < 12:
        played.step()
    assert [work.client for work in played.ended][:5] == ["many", "few", "many", "few", "many"]


def test_a_short_prompt_is_read_beside_a_long_one_and_others_go_on() -> None:
    played = Played(100, 3, 12)
    writing, long = Work([1] * 3, 60), Work([2] * 150, 4)
    played.scheduler.add(writing)
    played.step()
    played.scheduler.add(long)
    played.step()
    short = Work([0] * 10, 4)
    played.scheduler.add(short)
    before = len(writing.tokens)
    for _ in range(2):
        assert played.step() == 12
    assert len(writing.tokens) == before + 2
    assert len(short.tokens) > short.num_prompt and len(long.tokens) == long.num_prompt


def test_one_that_does_not_fit_is_passed_only_so_often() -> None:
    played = Played(8, 4, 12)
    played.scheduler.add(Work([1] * 9, 8, "a"))
    played.step()
    big = Work([2] * 20, 12, "big")
    played.scheduler.add(big)
    small = [Work([0] * 2, 2, "small") for _ in range(60)]
    for work in small:
        played.scheduler.add(work)
    while big not in played.ended:
        played.step()
    passed = sum(work in played.ended for work in small)
    assert 0 < passed <= MOST_PASSED + 4


def test_a_prefix_is_shared_while_it_is_in_use_and_a_beginning_copied() -> None:
    played = Played(20, 4, 30)
    first = Work([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 8)
    played.scheduler.add(first)
    played.step()
    second = Work([1, 2, 3, 4, 5, 6, 7, 8, 9, 11], 8)
    played.scheduler.add(second)
    played.step()
    assert second.num_cached == 8 and second.pages[:2] == first.pages[:2]
    while len(played.ended) < 2:
        played.step()
    third = Work([*first.tokens[:14], 99], 2)
    played.scheduler.add(third)
    played.step()
    assert third.num_cached == 14 and third.pages[3] not in first.pages
