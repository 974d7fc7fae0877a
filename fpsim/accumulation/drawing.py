"""Drawings of a summation tree: text, graphviz source, matplotlib."""

from __future__ import annotations

from typing import Any

from fpsim.accumulation.forms import Member, members_of
from fpsim.accumulation.program import Program

_MOST_LEAVES = 4096


def text(tree: Program) -> str:
    """The tree as lines of text, the root first; every addition is a ``+`` with its members below it.

    Starts from +0 are left out. Raises ValueError above 4096 leaves.
    """
    nodes, root = _shown(tree)
    if root is None:
        return "+0"
    lines: list[str] = []
    agenda: list[tuple[Member, str, str]] = [(root, "", "")]
    while agenda:
        member, before, below = agenda.pop()
        if member >= 0:
            lines.append(f"{before}x{member}")
            continue
        members = nodes[~member]
        lines.append(before + ("+" if len(members) == 2 else f"+ ({len(members)} fused)"))
        agenda.append((members[-1], below + "└─ ", below + "   "))
        agenda.extend((inner, below + "├─ ", below + "│  ") for inner in reversed(members[:-1]))
    return "\n".join(lines)


def svg(tree: Program) -> str:
    """The tree as an SVG element: leaves below, every addition above what it adds. Raises ValueError above 4096 leaves."""
    nodes, root = _shown(tree)
    points = _points(nodes, root)
    step, rise, margin = 24, 22, 16
    width = step * max(1, tree.leaves) + margin
    height = rise * max((up for _, up in points.values()), default=0) + 2 * margin

    def at(member: Member) -> tuple[float, float]:
        along, up = points[member]
        return round(margin + step * along, 1), height - margin - rise * up

    lines, marks = [], []
    for number, members in enumerate(nodes):
        x, y = at(~number)
        for left, low in map(at, members):
            lines.append(f'<line x1="{left}" y1="{low}" x2="{x}" y2="{y}"/>')
        fused = len(members) > 2
        marks.append(
            f'<rect x="{x - 4}" y="{y - 4}" width="8" height="8"/>' if fused else f'<circle cx="{x}" cy="{y}" r="3"/>'
        )
    for leaf in sorted(member for member in points if member >= 0):
        x, y = at(leaf)
        marks.append(f'<text x="{x}" y="{y + 12}" text-anchor="middle" stroke="none" font-size="10">{leaf}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" fill="currentColor" stroke="currentColor">{"".join(lines)}{"".join(marks)}</svg>'
    )


def graphviz(tree: Program) -> str:
    """The tree as source for graphviz's ``dot``. Raises ValueError above 4096 leaves."""
    nodes, root = _shown(tree)
    lines = ["digraph tree {", "  rankdir=BT; node [shape=circle, fontsize=10];"]
    if root is None:
        lines.append('  zero [label="+0"];')
    for leaf in range(tree.leaves):
        lines.append(f'  leaf{leaf} [label="x{leaf}", shape=box];')
    for number, members in enumerate(nodes):
        shape = "" if len(members) == 2 else ", shape=doublecircle"
        lines.append(f'  node{number} [label="+"{shape}];')
        lines.extend(f"  {_label(member)} -> node{number};" for member in members)
    return "\n".join([*lines, "}"])


def plot(tree: Program, axes: Any = None) -> Any:
    """The tree drawn into matplotlib axes (new ones when none are given), which are returned.

    A node stands at the height of its longest path to a leaf; fused nodes are squares.
    Raises ValueError above 4096 leaves.
    """
    import matplotlib.pyplot as plt

    nodes, root = _shown(tree)
    if axes is None:
        axes = plt.subplots(figsize=(max(4.0, min(16.0, 0.3 * tree.leaves)), 4.0))[1]
    points = _points(nodes, root)
    for number, members in enumerate(nodes):
        along, up = points[~number]
        for left, low in (points[member] for member in members):
            axes.plot([left, along], [low, up], color="0.6", linewidth=0.8, zorder=1)
    for fused, marker in ((False, "o"), (True, "s")):
        chosen = [points[~number] for number, members in enumerate(nodes) if (len(members) > 2) is fused]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), marker=marker, s=24, color="C1" if fused else "C0", zorder=2)
    if tree.leaves <= 64:
        for leaf, (along, _) in points.items():
            if leaf >= 0:
                axes.text(along, -0.15, str(leaf), ha="center", va="top", fontsize=7)
    axes.set(xlabel="leaf", ylabel="additions above", xticks=[])
    axes.set_ylim(bottom=-0.6)
    return axes


def _points(nodes: list[list[Member]], root: Member | None) -> dict[Member, tuple[float, int]]:
    """Where leaves and additions stand: from left to right, and how many additions are on the longest path below."""
    points: dict[Member, tuple[float, int]] = {leaf: (along, 0) for leaf, along in _leaf_places(nodes, root).items()}
    for number, members in enumerate(nodes):
        across = [points[member][0] for member in members]
        points[~number] = sum(across) / len(across), 1 + max(points[member][1] for member in members)
    return points


def _shown(tree: Program) -> tuple[list[list[Member]], Member | None]:
    if tree.leaves > _MOST_LEAVES:
        raise ValueError(f"tree: {tree.leaves} leaves are too many to draw; at most {_MOST_LEAVES}")
    return members_of(tree)


def _label(member: Member) -> str:
    return f"leaf{member}" if member >= 0 else f"node{~member}"


def _leaf_places(nodes: list[list[Member]], root: Member | None) -> dict[Member, float]:
    """Leaves from left to right in the order in which the tree reads them, so that no lines cross."""
    place: dict[Member, float] = {}
    agenda = [] if root is None else [root]
    while agenda:
        member = agenda.pop()
        if member >= 0:
            place[member] = float(len(place))
        else:
            agenda.extend(reversed(nodes[~member]))
    return place
