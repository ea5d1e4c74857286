"""Pages: who has which page of keys and values, and which prefixes can be used again.

What it is: numbers of pages, counted. No tensor is here. A page that is full of tokens is entered
into a tree of prefixes at once, so that whoever begins with the same tokens shares it; the rest of
a sequence is entered when it ends. What nobody uses stays until its place is needed, the longest
unused first. What it is not: a policy (scheduler.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Node:
    """One page in the tree: the tokens it holds (fewer than a page only in a leaf) after its
    parent's. ``num_users`` sequences hold it."""

    page: int
    tokens: Tokens
    parent: Node | None
    children: dict[Tokens, Node] = field(default_factory=dict)
    num_users: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """What is there of a prefix: whole pages to share, then ``num_copied`` positions of a page
    to copy."""

    shared: tuple[Node, ...]
    copied: Node | None
    num_copied: int


class Pages:
    """``num_pages`` pages of ``size`` positions. A user of a node also uses all nodes above it."""

    def __init__(self, num_pages: int, size: int) -> None:
        self.num_pages, self.size = num_pages, size
        self._root = Node(-1, (), None, num_users=1)
        self._free = list(range(num_pages - 1, -1, -1))
        # Nodes without a user, the longest unused first. A node leaves its users no earlier than
        # those below it do, so it stands behind them, and the first one is always a leaf.
        self._unused: OrderedDict[int, Node] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Pages that nobody uses: free ones, and those that are kept in case they serve again."""
        return len(self._free) + len(self._unused)

    @property
    def num_kept(self) -> int:
        """Pages without a user that hold prefixes."""
        return len(self._unused)

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest prefix of ``tokens`` that is there; changes nothing."""
        node, shared, first = self._root, [], 0
        while (found := node.children.get(tuple(tokens[first : first + self.size]))) is not None:
            if len(found.tokens) < self.size:
                break
            shared.append(found)
            node, first = found, first + self.size
        rest = tuple(tokens[first : first + self.size])
        best, most = None, 0
        for child in node.children.values():
            num = _common(child.tokens, rest)
            if num > most:
                best, most = child, num
        return Match(tuple(shared), best, most)

    def num_unused(self, nodes: Sequence[Node]) -> int:
        """How many of these would stop being available if they were used."""
        return sum(node.num_users == 0 for node in nodes)

    def use(self, nodes: Sequence[Node]) -> None:
        """Become a user of a path from the top."""
        for node in nodes:
            if node.num_users == 0:
                del self._unused[node.page]
            node.num_users += 1

    def leave(self, nodes: Sequence[Node]) -> None:
        """Stop being a user of a path from the top."""
        for node in reversed(nodes):
            node.num_users -= 1
            assert node.num_users >= 0
            if node.num_users == 0:
                self._unused[node.page] = node

    def take(self) -> int:
        """A page for oneself; the caller has made sure that one is available."""
        if not self._free:
            _, oldest = self._unused.popitem(last=False)
            assert not oldest.children and oldest.parent is not None
            del oldest.parent.children[oldest.tokens]
            return oldest.page
        return self._free.pop()

    def give_back(self, page: int) -> None:
        """A page that one has taken is free again."""
        self._free.append(page)

    def enter(self, path: Sequence[Node], tokens: Tokens, page: int) -> Node:
        """Put a taken page into the tree below ``path``; its taker becomes a user of the node.

        Where the same tokens are there already, that node is used and the page is free again.
        """
        parent = path[-1] if path else self._root
        node = parent.children.get(tokens)
        if node is not None:
            self.give_back(page)
        else:
            node = Node(page, tokens, parent, num_users=0)
            self._unused[page] = node
            parent.children[tokens] = node
        self.use((node,))
        return node

    def drop(self, nodes: Sequence[Node]) -> None:
        """Free those of these nodes that nobody uses, with all that stands below them."""
        for node in reversed(nodes):
            if node.num_users == 0 and node.page in self._unused:
                self.drop(list(node.children.values()))
                assert node.parent is not None
                del self._unused[node.page]
                del node.parent.children[node.tokens]
                self.give_back(node.page)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common beginning."""
    num = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        num += 1
    return num
