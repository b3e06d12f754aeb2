"""Counts a text: characters, words, sentences, and its most frequent words."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from bot_service.bots.base import bot, serve

_WORD = re.compile(r"\w+")
MOST = 5


def count(text: str) -> dict[str, Any]:
    """Figures about `text`."""
    words = [word.lower() for word in _WORD.findall(text)]
    return {
        "characters": len(text),
        "words": len(words),
        "sentences": len(re.findall(r"[.!?]+", text)),
        "most_frequent": Counter(words).most_common(MOST),
    }


app = bot("statistics", count)

if __name__ == "__main__":
    serve(app)
