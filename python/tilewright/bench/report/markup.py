"""HTML and SVG from Python, with everything escaped that is not markup by itself."""

from __future__ import annotations

import html
import re
from typing import TypeAlias

_VOID = ("meta", "input")
#: No text of HTML may hold them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child: TypeAlias = "str | int | list[Markup] | None"


def escaped(text: object) -> Markup:
    return text if isinstance(text, Markup) else Markup(html.escape(_CONTROL.sub("�", str(text))))


def join(*children: Child) -> Markup:
    parts = [p for c in children if c is not None for p in (c if isinstance(c, list) else [c])]
    return Markup("".join(map(escaped, parts)))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """``class_`` is class, and ``data_x`` is data-x. An attribute of None or False is left out; True has no value."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escaped(_number(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def _number(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
