"""Byte pair encoding, learned: the most frequent pair of neighbours becomes one token, again and again (Sennrich et al.
2016, arXiv 1508.07909)."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

Pair = tuple[str, str]


def learned(
    words: Sequence[tuple[Sequence[str], int]], *, most: int, fewest: int, allowed: Callable[[Pair], bool]
) -> Iterator[Pair]:
    """At most `most` merges of pairs that occur `fewest` times or more, the most frequent first, equal ones in the
    order of their text. words: (tokens, how often the word occurs). A pair that is not `allowed` never will be.

    `[(["a", "b", "c"], 9), (["a", "b"], 5)]` gives ("a", "b"), then ("ab", "c").
    """
    cut = [(list(tokens), count) for tokens, count in words]
    counts: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (tokens, count) in enumerate(cut):
        for pair in pairwise(tokens):
            counts[pair] += count
            holders[pair].add(index)
    queue = [(-count, pair) for pair, count in counts.items() if count >= fewest]
    heapq.heapify(queue)
    while queue and most:
        count, pair = heapq.heappop(queue)
        if counts[pair] != -count or not allowed(pair):  # its count has changed, and it is in the queue again
            continue
        most -= 1
        yield pair
        changed: set[Pair] = set()
        for index in holders.pop(pair):
            tokens, times = cut[index]
            before = list(pairwise(tokens))
            join(tokens, pair)
            after = list(pairwise(tokens))
            for each in before:
                counts[each] -= times
            for each in after:
                counts[each] += times
                holders[each].add(index)
            changed.update(before, after)
        for each in changed:
            if each != pair and counts[each] >= fewest:
                heapq.heappush(queue, (-counts[each], each))


def join(tokens: list[str], pair: Pair) -> None:
    """Each occurrence of the pair becomes one token, from left to right."""
    index = 0
    while index < len(tokens) - 1:
        if (tokens[index], tokens[index + 1]) == pair:
            tokens[index : index + 2] = ["".join(pair)]
        index += 1
