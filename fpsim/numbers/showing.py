"""What a notebook shows of an object: small pieces of HTML that ask nothing of the page around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_CELL = "padding:1px 10px 1px 0;text-align:left;vertical-align:top"


def html_table(title: str, rows: Iterable[Sequence[str]], heads: Sequence[str] = (), note: str = "") -> str:
    """A table of texts, which are escaped: whatever is in them is shown as it is."""
    head = "".join(f'<th style="{_CELL}">{escape(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{escape(text)}</td>' for text in row) + "</tr>" for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return (
        f'<div><p><strong>{escape(title)}</strong></p><table style="border-collapse:collapse">'
        f"{f'<thead><tr>{head}</tr></thead>' if heads else ''}<tbody>{body}</tbody></table>{below}</div>"
    )
