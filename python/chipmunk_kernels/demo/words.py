"""Captions as bags of words: which words the model knows, and a prompt turned into their ids."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

PAD = 0
"""The id that fills an unused word slot. A caption of PAD alone is the unconditional one."""


def split_words(text: str) -> list[str]:
    """The distinct lower-case words of a text, in order: ``"Red-Apple!"`` -> ``[red, apple]``."""
    return list(dict.fromkeys(re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))))


class Vocabulary:
    """A fixed list of words. Word i has id i + 1; id 0 is PAD."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words: tuple[str, ...] = tuple(words)
        self._ids = {word: i + 1 for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError("vocabulary: expected distinct words, got duplicates")

    def __len__(self) -> int:
        """How many ids there are, PAD included."""
        return len(self.words) + 1

    def ids(self, words: Sequence[str], slots: int) -> list[int]:
        """Ids of the known ones among `words`, cut or filled with PAD to `slots` entries."""
        known = [self._ids[word] for word in words if word in self._ids][:slots]
        return known + [PAD] * (slots - len(known))

    def encode_prompt(self, prompt: str, slots: int) -> tuple[list[int], list[str]]:
        """Ids for a prompt and one remark per word that the model has never seen.

        Raises ValueError when no word of the prompt is known.
        """
        words = split_words(prompt)
        unknown = [word for word in words if word not in self._ids]
        remarks = [self._remark(word) for word in unknown]
        if len(unknown) == len(words):
            raise ValueError(
                f"demo: prompt: expected at least one known word, got {prompt!r}"
                + "".join(f"; {remark}" for remark in remarks)
            )
        return self.ids(words, slots), remarks

    def _remark(self, word: str) -> str:
        near = difflib.get_close_matches(word, self.words, n=3)
        return f"{word!r} is unknown" + (f" (near: {', '.join(near)})" if near else "")
