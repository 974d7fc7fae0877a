"""The text that every Python carries: the topics of its `help()`, as characters."""

from __future__ import annotations

import functools
import hashlib
import sys

import numpy as np

from experiments.data.dataset import Dataset

LENGTH = 64
#: 64 bits of the SHA-256 of the text, by version: it changes with almost every one.
DIGESTS = {"3.11.7": "aa4790f280399078"}


class UnknownText(ValueError):
    """The text is one that no results are of."""


@functools.cache
def load_topics() -> Dataset:
    """Windows of 64 characters (ASCII; "?" for all else) and those that follow each; the last tenth is for testing.

    Raises UnknownText where the text is not one that results here are of.
    """
    text = read()
    found, version = hashlib.sha256(text.encode()).hexdigest()[:16], sys.version.split()[0]
    if found not in DIGESTS.values():
        known = ", ".join(f"{digest} (Python {number})" for number, digest in DIGESTS.items())
        raise UnknownText(
            f"the text of pydoc_data.topics of Python {version} has the digest {found}; results are of {known}. To use "
            "this one, add it to DIGESTS in experiments/data/topics.py: its results are not to be compared with those"
        )
    tokens = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
    count = (len(tokens) - 1) // LENGTH
    inputs = tokens[: count * LENGTH].reshape(count, LENGTH)
    targets = tokens[1 : count * LENGTH + 1].reshape(count, LENGTH)
    kept = count - count // 10
    return Dataset(inputs[:kept], targets[:kept], inputs[kept:], targets[kept:], 128)


def read() -> str:
    """All topics in the order of their names."""
    from pydoc_data.topics import topics as texts

    return "\n".join(f"{name}\n{texts[name]}" for name in sorted(texts))
