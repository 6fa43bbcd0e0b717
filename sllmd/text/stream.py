"""Token ids to text, one at a time, saying only what can no longer change.

Each token becomes the bytes it adds (``Tokenizer.piece``), an incremental UTF-8 decoder holds back half code
points, and a ``StopMatcher`` holds back what may become a stop string. Work per token does not grow with the
length of the text. (``tokenizers.DecodeStream`` does nearly this, but holds a run of invalid bytes without
bound, decoding all of it again for each token, and raises when a byte-fallback run turns out invalid.)
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from sllmd.text.stops import StopMatcher
from sllmd.text.tokenizer import CONTEXT_PIECES, Tokenizer

_new_decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """The text of one generation. After ``stopped`` nothing follows."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_ids: Sequence[int] = (),
        stop: tuple[str, ...] = (),
        skip_special: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._context: deque[int] = deque(maxlen=CONTEXT_PIECES)
        for token_id in prompt_ids[-4 * CONTEXT_PIECES :]:
            self._remember(token_id)
        self._utf8 = _new_decoder(errors="replace")
        self._stops = StopMatcher(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; it is not part of the text."""
        return self._stops.stopped

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` makes certain; often empty."""
        piece = self._tokenizer.piece(self._context, token_id, skip_special=self._skip_special)
        self._remember(token_id)
        return self._stops.push(self._utf8.decode(piece))

    def flush(self) -> str:
        """The rest, now that no token follows; an unfinished code point becomes U+FFFD."""
        if self._stops.stopped:
            return ""
        text = self._stops.push(self._utf8.decode(b"", final=True))
        return text if self._stops.stopped else text + self._stops.flush()

    def _remember(self, token_id: int) -> None:
        if not (self._skip_special and self._tokenizer.is_special(token_id)):
            self._context.append(token_id)
