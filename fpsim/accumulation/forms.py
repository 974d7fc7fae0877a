"""Standard forms of a tree: the canonical program, and the program made of chains."""

from __future__ import annotations

from collections.abc import Sequence

from fpsim.accumulation.program import ADD, CHAIN, FUSED, ZERO, Program

# A member of a node is a leaf (its number, >= 0) or a node (~index, < 0); None stands for a bare +0.
Member = int


def members_of(tree: Program) -> tuple[list[list[Member]], Member | None]:
    """The nodes of a tree in program order, each the list of its members with every +0 left out, and the root."""
    nodes: list[list[Member]] = []

    def join(*terms: Member | None) -> Member | None:
        kept = [term for term in terms if term is not None]
        if len(kept) < 2:
            return kept[0] if kept else None
        nodes.append(kept)
        return ~(len(nodes) - 1)

    return nodes, tree.evaluate(range(tree.leaves), join, zero=None)


def _arrange(nodes: list[list[Member]]) -> None:
    """Sort the members of every node: groups before leaves, more stack first, then the smaller first leaf."""
    need: list[int] = []
    first: list[int] = []
    for members in nodes:
        members.sort(key=lambda m: (1, 0, m) if m >= 0 else (0, -need[~m], first[~m]))
        first.append(min(m if m >= 0 else first[~m] for m in members))
        need.append(_stack_need([1 if m >= 0 else need[~m] for m in members], members[-1] >= 0))


def _stack_need(needs: Sequence[int], ends_with_leaf: bool) -> int:
    if len(needs) == 2 and ends_with_leaf:
        return needs[0]  # the leaf enters by a chain step and takes no slot
    return max(position + need for position, need in enumerate(needs))


def standard_steps(tree: Program, start: bool) -> list[int]:
    """The program of ``tree.canonical()``; with ``start`` of ``tree.chains()``, where two leaves that meet are a chain from +0.

    ValueError for chains of a tree that has fused nodes.
    """
    if start and not tree.is_binary:
        raise ValueError("tree: it has fused nodes of more than two terms, which no chain of additions can express")
    nodes, root = members_of(tree)
    _arrange(nodes)
    if root is None:
        return [ZERO]
    if root >= 0:
        return [ZERO, CHAIN - root] if start else [root]
    steps: list[int] = []
    agenda: list[tuple[bool, int]] = [(False, root)]  # (True, code) is emitted as it is
    while agenda:
        ready, item = agenda.pop()
        if ready or item >= 0:
            steps.append(item)
            continue
        members = nodes[~item]
        if len(members) > 2:
            agenda.append((True, FUSED - len(members)))
            agenda.extend((False, member) for member in reversed(members))
            continue
        left, right = members
        agenda.append((True, CHAIN - right if right >= 0 else ADD))
        if right < 0:
            agenda.append((False, right))
        if start and left >= 0:
            agenda.extend([(True, CHAIN - left), (True, ZERO)])
        else:
            agenda.append((False, left))
    return steps
