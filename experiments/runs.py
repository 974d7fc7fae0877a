"""A run is a value: what is to be computed, known by the hash of its configuration. A record is a finished run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks. NaN and infinities raise ValueError: a result says in words what it has of them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Run:
    """One measurement of a claim. `configuration` is all that the result depends on, as JSON holds it."""

    claim: str
    configuration: dict[str, Any] = field(hash=False)

    @cached_property
    def key(self) -> str:
        """64 bits of the configuration's SHA-256: the same run has the same key in every process and on every machine."""
        return hashlib.sha256(canonical([self.claim, self.configuration]).encode()).hexdigest()[:16]

    @property
    def arm(self) -> str:
        return self.configuration["arm"]

    @property
    def seed(self) -> int:
        return self.configuration["seed"]


@dataclass(frozen=True)
class Record:
    """A finished run: its result, what it cost, and where it was computed."""

    run: Run
    result: dict[str, Any] = field(hash=False)
    seconds: float
    environment: dict[str, str] = field(hash=False)

    def line(self) -> str:
        """The record as a line of JSON, its end included."""
        return canonical(
            {
                "key": self.run.key, "claim": self.run.claim, "configuration": self.run.configuration,
                "result": self.result, "seconds": round(self.seconds, 3), "environment": self.environment,
            }
        ) + "\n"  # fmt: skip

    @classmethod
    def parse(cls, line: str) -> Record:
        """The record of a line. Raises ValueError where it is none, or where its key is not that of its configuration."""
        found = json.loads(line)
        try:
            run = Run(found["claim"], found["configuration"])
            record = cls(run, found["result"], found["seconds"], found["environment"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a run: {error}") from None
        if found.get("key") != run.key:
            raise ValueError(f"key {found.get('key')!r} is not that of the configuration, {run.key}: it was edited")
        return record
