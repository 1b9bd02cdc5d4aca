"""Splits narration in which several people speak into turns, one speaker each, as role-play models are prompted.

Who speaks is read off the text itself: from what stands behind a quotation ("said Mia"), else from the sentence before
it. Quotations of people outside the cast stay with the narrator.
"""

import re
from collections.abc import Iterator, Sequence

_PIECES = re.compile(r'"[^"]*"|[^"]+')
_SENTENCES = re.compile(r"[^.!?]*[.!?]+\s*|[^.!?]+\s*$")
_PRONOUN = re.compile(r"\b(?:he|she)\b")
Part = tuple[str | None, str]


def split(content: str, names: Sequence[str], opening: str | None = None) -> list[Part]:
    """Parts in order, each with its speaker; None is the narrator. `opening`: who speaks if nothing else tells."""
    known = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    parts: list[Part] = []
    for speaker, text in _attributed(content, known, opening):
        if parts and parts[-1][0] == speaker:
            parts[-1] = (speaker, parts[-1][1] + text)
        else:
            parts.append((speaker, text))
    return [(speaker, text.strip()) for speaker, text in parts if text.strip()]


def _attributed(content: str, known: re.Pattern[str], opening: str | None) -> Iterator[Part]:
    """Every quotation with its attribution, and every sentence between them, with its speaker."""
    pieces = _PIECES.findall(content)
    speaker, subject = opening, opening
    for at, piece in enumerate(pieces):
        if piece.startswith('"'):
            behind = pieces[at + 1] if at + 1 < len(pieces) else ""
            attribution = _attribution(behind)
            named = known.search(attribution)
            if named:
                speaker = named.group()
            elif _PRONOUN.search(attribution) or not attribution:
                speaker = subject or speaker
            else:
                speaker = None
            subject = speaker
            yield speaker, piece + attribution
            pieces[at + 1 : at + 2] = [behind[len(attribution) :]] if behind else []
            continue
        for sentence in _SENTENCES.findall(piece):
            named = known.search(sentence)
            subject = named.group() if named else subject
            told = named is None or named.group() == speaker
            ahead = at + 1 < len(pieces) and piece.endswith(sentence) and named
            yield (named.group() if ahead and named else speaker if told else None), sentence


def _attribution(text: str) -> str:
    """What stands behind a quotation up to the end of its sentence, when the sentence goes on there."""
    if not re.match(r"\s+(?:[a-z]|[A-Z]\w* (?:said|asked))", text):
        return ""
    found = re.match(r"[^.!?]*[.!?]*\s*", text)
    return found.group() if found else ""
