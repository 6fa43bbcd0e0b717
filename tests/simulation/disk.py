"""A disk that forgets what was not synced, tears the last write, flips bits, fills up, and fails."""

from __future__ import annotations

from random import Random

from sllmd.core.errors import JournalFailed

SECTOR_BYTES = 512


class SimFile:
    def __init__(self) -> None:
        self.data = bytearray()
        self.dirty: list[tuple[int, bytes]] = []
        """Writes since the last sync. The journal only ever writes behind what is synced."""

    def crash(self, random: Random) -> None:
        if not self.dirty:
            return
        del self.data[min(offset for offset, _ in self.dirty) :]
        for offset, data in self.dirty:
            if not self._tear(offset, data, random):
                break
        self.dirty = []

    def _tear(self, offset: int, data: bytes, random: Random) -> bool:
        """What is left of one write; says whether it came through whole."""
        fate = random.random()
        if fate < 0.3:
            self._put(offset, data)
            return True
        if fate < 0.6:
            self._put(offset, data[: random.randrange(len(data))])
            return False
        torn = bytearray(data)  # sectors that were never written read as zeros
        first, last = offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES
        lost = random.sample(range(first, last + 1), random.randint(1, last - first + 1))
        for sector in lost:
            start = max(0, sector * SECTOR_BYTES - offset)
            stop = min(len(data), (sector + 1) * SECTOR_BYTES - offset)
            torn[start:stop] = bytes(stop - start)
        self._put(offset, bytes(torn))
        return False

    def _put(self, offset: int, data: bytes) -> None:
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data


class SimDisk:
    """The journal's ``Files``. Names, too, are forgotten unless synced."""

    def __init__(self) -> None:
        self.files: dict[str, SimFile] = {}
        self.durable_names: dict[str, SimFile] = {}
        self.failing = ""
        """While not empty, every sync fails for this reason."""
        self.syncs_lie = False
        """For a crash in the middle of a write: what is synced now will still be torn."""

    def names(self) -> list[str]:
        return sorted(self.files)

    def size_bytes(self, name: str) -> int:
        return len(self.files[name].data)

    def read(self, name: str, offset: int = 0, bytes_max: int = -1) -> bytes:
        if name not in self.files:
            return b""
        end = None if bytes_max < 0 else offset + bytes_max
        return bytes(self.files[name].data[offset:end])

    def write(self, name: str, offset: int, data: bytes) -> None:
        file = self.files.setdefault(name, SimFile())
        file._put(offset, data)
        file.dirty.append((offset, data))

    def truncate(self, name: str, size_bytes: int) -> None:
        del self.files[name].data[size_bytes:]

    def sync(self, name: str) -> None:
        if self.failing:
            raise JournalFailed(f"the journal cannot sync {name}: {self.failing}")
        if not self.syncs_lie:
            self.files[name].dirty = []

    def sync_names(self) -> None:
        if self.failing:
            raise JournalFailed(f"the journal cannot sync names: {self.failing}")
        if not self.syncs_lie:
            self.durable_names = dict(self.files)

    def rename(self, old: str, new: str) -> None:
        self.files[new] = self.files.pop(old)

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def crash(self, random: Random) -> None:
        """Power is lost."""
        self.failing, self.syncs_lie = "", False
        if random.random() < 0.5:
            self.files = dict(self.durable_names)
        self.durable_names = dict(self.files)
        for file in self.files.values():
            file.crash(random)

    def flip(self, random: Random) -> str | None:
        """One bit of what was synced changes; says where."""
        logs = [name for name, file in self.files.items() if name.startswith("wal-") and file.data]
        if not logs:
            return None
        name = random.choice(sorted(logs))
        at = random.randrange(len(self.files[name].data))
        self.files[name].data[at] ^= 1 << random.randrange(8)
        return f"{name} byte {at}"
