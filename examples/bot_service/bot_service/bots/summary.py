"""Summarises a text: the sentences whose words are most frequent in it, in their order (Luhn 1958)."""

from __future__ import annotations

import re
from collections import Counter

from bot_service.bots.base import bot, serve

_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_WORD = re.compile(r"\w{4,}")
SENTENCES = 2


def summarise(text: str) -> str:
    """The weightiest sentences of `text`."""
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(text) if sentence.strip()]
    weight = Counter(word.lower() for word in _WORD.findall(text))

    def score(index: int) -> float:
        words = _WORD.findall(sentences[index])
        return sum(weight[word.lower()] for word in words) / (len(words) + 1)

    best = sorted(sorted(range(len(sentences)), key=score, reverse=True)[:SENTENCES])
    return " ".join(sentences[index] for index in best)


def first(text: str) -> str:
    """The first sentences: what a stand-in gives when the summariser fails."""
    return " ".join(sentence.strip() for sentence in _SENTENCE.findall(text)[:SENTENCES])


app = bot("summary", summarise)
lead = bot("summary-lead", first)

if __name__ == "__main__":
    serve(app)
