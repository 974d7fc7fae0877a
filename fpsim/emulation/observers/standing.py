"""Whether what stood still in a step stands since: a parameter, its decay, running statistics."""

from __future__ import annotations

from collections.abc import Hashable

Key = tuple[str, ...]  # of an event


class Standing:
    """How often each subject of an event stood since its first time, and how often it moved."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, list[int]] = {}
        self._subjects: dict[Key, Hashable] = {}

    def stand(self, subject: Hashable, key: Key) -> None:
        """It stood in this step, which an event of that key tells of."""
        self._subjects.setdefault(key, subject)
        self._counts.setdefault(subject, [0, 0])[0] += 1

    def move(self, subject: Hashable) -> None:
        """It moved in this step."""
        counts = self._counts.get(subject)
        if counts is not None:
            counts[1] += 1

    def is_over(self, key: Key) -> bool:
        """Whether the subject of an event has moved more often than it stood since."""
        stood, moved = self._counts.get(self._subjects.get(key), (0, 0))
        return moved > stood
