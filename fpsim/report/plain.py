"""Other people's text: names, paths and messages as they are, without control codes."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text with what cannot be printed as escapes, so that it neither steers a terminal nor breaks a line.

    A half of a surrogate pair, which no encoding can write, is one such character.
    """
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
