"""Lengths of real texts, for padded and packed batches.

The texts are Python 3.11's standard library, which everybody has; a token is a word or a punctuation mark, about what
GPT-2's pattern splits text into before it merges: re.findall(r"\\w+|[^\\w\\s]"). Quantiles at 0, 1/32, ... 1.
"""

from __future__ import annotations

import random

#: Docstrings of 8 tokens or more, 7365 of them: most are short and a few are long, as are queries and reviews.
# fmt: off
PASSAGES = (8, 8, 9, 9, 10, 10, 11, 11, 12, 13, 14, 15, 17, 19, 21, 23, 25, 27, 30, 33, 36, 40, 44, 49, 56, 63, 71, 80,
            98, 121, 156, 232, 1492)
#: Source files of 32 tokens or more, 645 of them: what a language model is trained on.
DOCUMENTS = (32, 101, 176, 182, 250, 349, 450, 541, 661, 796, 941, 1084, 1252, 1394, 1592, 1811, 2014, 2290, 2583,
             2902, 3078, 3162, 3251, 3562, 4087, 4782, 5635, 6394, 6789, 9104, 12195, 17747, 52287)
# fmt: on


def draw_lengths(quantiles: tuple[int, ...], count: int, longest: int, seed: int = 0) -> tuple[int, ...]:
    """``count`` lengths, each cut at ``longest``."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        place = draw.random() * (len(quantiles) - 1)
        low = int(place)
        length = quantiles[low] + (place - low) * (quantiles[low + 1] - quantiles[low])
        found.append(min(longest, round(length)))
    return tuple(found)


def padded(count: int, longest: int) -> tuple[int, ...]:
    """Of a batch that is padded to its longest text, which is this long."""
    return (longest, *draw_lengths(PASSAGES, count - 1, longest))


def packed(total: int, longest: int) -> tuple[int, ...]:
    """Of documents that are packed into ``total`` tokens; the last one is cut."""
    found: list[int] = []
    for length in draw_lengths(DOCUMENTS, total, longest):
        found.append(min(length, total - sum(found)))
        if sum(found) == total:
            break
    return tuple(found)
