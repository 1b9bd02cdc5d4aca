"""What is read behind the engine: events of one choice in, the events to tell out.

Takes off the rest of a header that was left open, and says who speaks; takes special tokens out of the text where they
are not kept. It does not: match stop strings (the engine does), count tokens, or know a wire protocol.

Laws: however the engine cuts a text into deltas, the text told is the same. No text waits longer than `HEADER_CHARS` or
than the rest of one special token. `token_ids` are never changed: usage is counted from them.
"""

from collections import deque
from collections.abc import Mapping

from serving.core import Delta, Event, Finished, TokenLogprob
from serving.prompting.templates import Template

HEADER_CHARS = 256
"""A generated header longer than this is no header: all of it is content."""


class TextReader:
    """Reads one choice. Fed with every event in order; gives the events to tell instead.

    Special tokens are found by their ids, and taken out where the text spells them next: what merely looks like one
    stays. `specials` are the spellings by id, of those to take out.
    """

    __slots__ = ("_awaited", "_header", "_held", "_index", "_specials", "_taken_out")

    def __init__(self, index: int, specials: Mapping[int, str], header: "OpenHeader | None" = None) -> None:
        self._index = index
        self._specials = specials
        self._taken_out = specials.keys()
        self._header = header
        self._awaited: deque[str] = deque()  # special tokens generated, whose text has not come yet
        self._held = ""  # the end of the text so far, where it may be the beginning of the next awaited one

    def on_event(self, event: Event) -> tuple[Event, ...]:
        """The events to tell: a Delta becomes one Delta, and before Finished may come what was held back."""
        if type(event) is Delta:
            if self._header is None and not self._awaited and self._taken_out.isdisjoint(event.token_ids):
                return (event,)
            return (self._read(event),)
        if type(event) is Finished:
            return self._finish(event)
        return (event,)

    def _read(self, delta: Delta) -> Delta:
        taken_out = self._taken_out
        self._awaited.extend(self._specials[token] for token in delta.token_ids if token in taken_out)
        text, logprobs, names = delta.text, delta.logprobs, None
        if self._header is not None:
            text, logprobs, names = self._read_header(text, logprobs)
        text = self._without_specials(text)
        if taken_out and logprobs:
            logprobs = tuple(each for each in logprobs if each.token_id not in taken_out)
        return Delta(delta.index, text, delta.token_ids, logprobs, names)

    def _read_header(
        self, text: str, logprobs: tuple[TokenLogprob, ...], *, last: bool = False
    ) -> tuple[str, tuple[TokenLogprob, ...], tuple[str, ...] | None]:
        """The content behind the header, once its end is known; until then nothing."""
        header = self._header
        assert header is not None
        end = header.feed(text, logprobs, last=last)
        if end is None:
            return "", (), None
        self._header = None
        if end == 0:
            return header.text, tuple(header.logprobs), None
        self._without_specials(header.text[:end])  # those of the header are no longer awaited
        self._held = ""
        return header.text[end:], header.content_logprobs(), header.names()

    def _without_specials(self, text: str) -> str:
        """The text without the special tokens awaited, holding back what may be the beginning of one."""
        awaited = self._awaited
        if not awaited:
            return text
        text, self._held = self._held + text, ""
        shown = ""
        while awaited:
            before, found, after = text.partition(awaited[0])
            if not found:
                break
            shown, text = shown + before, after
            awaited.popleft()
        held = _held_chars(text, awaited[0]) if awaited else 0
        self._held = text[len(text) - held :]
        return shown + text[: len(text) - held]

    def _finish(self, event: Finished) -> tuple[Event, ...]:
        text, names = "", None
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._header is not None:
            text, logprobs, names = self._read_header("", (), last=True)
        text = self._without_specials(text) + self._held
        self._held = ""
        if not text and not logprobs and names is None:
            return (event,)
        return (Delta(self._index, text, (), logprobs, names), event)


class OpenHeader:
    """The header that the model is writing: what the prompt began of it, and what has come since."""

    __slots__ = ("_after", "_begun", "_end", "_marker", "_template", "logprobs", "text")

    def __init__(self, template: Template, begun: str) -> None:
        self._template = template
        self._begun = begun
        self._marker = template.header_end_token or template.header_end_text
        self._after = template.header_end_text if template.header_end_token else ""
        self._end = 0
        self.text = ""
        self.logprobs: list[TokenLogprob] = []

    def feed(self, text: str, logprobs: tuple[TokenLogprob, ...], *, last: bool) -> int | None:
        """Where the content begins in `text`: 0 when this is no header at all; None while that is open.

        A header that is still none but a header at the `last` is cut short: taken off, and nobody is named.
        """
        self.text += text
        self.logprobs += logprobs
        self._end = self.text.find(self._marker, 0, HEADER_CHARS)
        if self._end < 0:
            if len(self.text) >= HEADER_CHARS or (last and not self._cut_short()):
                return 0
            return len(self.text) if last else None
        begin = self._end + len(self._marker)
        rest = self.text[begin : begin + len(self._after)]
        if not last and len(rest) < len(self._after) and self._after.startswith(rest):
            return None
        return begin + len(rest) - len(_without_start(rest, self._after))

    def _cut_short(self) -> bool:
        """Whether all of the text goes on with the header: its role stays the one that was begun."""
        read = self._template.read_header
        return read(self._begun + self.text)[0] == read(self._begun)[0]

    def names(self) -> tuple[str, ...] | None:
        """Who speaks, by the whole header: () is the narrator, None nobody yet."""
        return self._template.read_header(self._begun + self.text[: self._end])[1] if self._end >= 0 else None

    def content_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of tokens with content in them: a token of header alone is dropped."""
        kept: list[TokenLogprob] = []
        ended, after = False, self._after
        for token in self.logprobs:
            if ended and not after:
                kept.append(token)
                continue
            text = token.text
            if not ended:
                _, found, text = text.partition(self._marker)
                ended = bool(found)
            if ended and text:
                rest = _without_start(text, after)
                after = "" if rest else after[len(text) :]
                if rest:
                    kept.append(token)
        return tuple(kept)


def _held_chars(text: str, special: str) -> int:
    """How much of the end of `text` may be the beginning of `special`."""
    for length in range(min(len(special) - 1, len(text)), 0, -1):
        if text.endswith(special[:length]):
            return length
    return 0


def _without_start(text: str, start: str) -> str:
    """`text` without as much of `start` as it begins with."""
    for length in range(len(start), 0, -1):
        if text.startswith(start[:length]):
            return text[length:]
    return text
