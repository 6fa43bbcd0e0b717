"""Stop strings, found as text arrives. Pure.

Text is scanned character by character, so the result does not depend on how it was cut into pieces: the
first stop string *to be completed* ends the text, and of those completed by the same character the longest.
Only the longest suffix that is a proper prefix of some stop string is held back.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until a stop string is complete; ``stopped`` tells that one was."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string stops before anything is said"
        self._stops = tuple(stops)
        self._borders = tuple(_borders(stop) for stop in self._stops)
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of what was held and ``text`` that can no longer become part of a stop string."""
        if not self._stops or not text:
            return "" if self.stopped else text
        if self.stopped:
            return ""
        buffer = self._held + text
        for position in range(len(self._held), len(buffer)):
            completed_characters = self._advance(buffer[position])
            if completed_characters:
                self.stopped = True
                self._held = ""
                return buffer[: position + 1 - completed_characters]
        keep = max(self._matched)
        split = len(buffer) - keep
        self._held = buffer[split:]
        return buffer[:split]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Knuth-Morris-Pratt, one character for every stop string; length of the longest completed, or 0."""
        completed = 0
        for which, stop in enumerate(self._stops):
            matched = self._matched[which]
            while matched and stop[matched] != character:
                matched = self._borders[which][matched]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                completed = max(completed, matched)
                matched = self._borders[which][matched]
            self._matched[which] = matched
        return completed


def _borders(stop: str) -> list[int]:
    """For each length k: the longest proper prefix of ``stop`` that is a suffix of its first k characters."""
    borders = [0] * (len(stop) + 1)
    matched = 0
    for position in range(1, len(stop)):
        while matched and stop[matched] != stop[position]:
            matched = borders[matched]
        if stop[matched] == stop[position]:
            matched += 1
        borders[position + 1] = matched
    return borders
