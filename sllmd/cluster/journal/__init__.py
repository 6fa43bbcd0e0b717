"""The journal: what this node has promised the others, on its disk.

Owns: a write-ahead log of checksummed frames in segments, and snapshots beside it; recovery; one thread
that writes. Knows nothing of elections and commands: it keeps entries, a hard state and snapshots.

Invariants: ``Persisted`` is said only after ``fdatasync``; one frame is synced before the next is written,
so that only the last frame can ever be torn; a torn last frame is cut, anything else that reads wrong is
``JournalCorrupt`` and nothing is cut; a write or sync that failed is never tried again.

Start at ``frames.py`` (bytes, and the rule that tells torn from corrupt), then ``wal.py``, then
``threaded.py``.
"""

from sllmd.cluster.journal.files import DirectoryFiles, Files
from sllmd.cluster.journal.settings import JournalSettings
from sllmd.cluster.journal.threaded import Journal
from sllmd.cluster.journal.wal import Recovered, Wal

__all__ = ["DirectoryFiles", "Files", "Journal", "JournalSettings", "Recovered", "Wal"]
