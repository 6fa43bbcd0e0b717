"""Bytes up the tiers: remote or peer -> SSD -> DRAM (-> device, which a worker does itself).

Owns: the slabs of the DRAM tier and their books, the reading threads, the gauge of every hop's bandwidth.
Knows nothing of tensors, engines or requests.
Invariants: bulk bytes never pass through asyncio streams; what the books say is resident is resident; one
load per checkpoint however many wait; a chunk whose checksum differs is never served.
Start at ``tier.DramTier``; then ``load`` (one load, as the loop sees it), ``pipeline`` (the threads),
``disk``, ``arriving``, ``remote`` and ``peer`` (where bytes come from), ``sharing`` (what peers may read
here). ``plan``, ``tiers``, ``gauge`` and ``status`` are pure.
"""
