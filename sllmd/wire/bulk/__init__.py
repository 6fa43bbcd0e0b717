"""Chunks of checkpoints from node to node: threads, blocking sockets, bytes straight into the destination.

Owns: asking for a range of a checkpoint's file and sending it, over TLS or plain with a tag. Knows nothing of
what the bytes are. Start at ``client`` and ``server``; ``messages`` is pure.

Frames are those of ``rpc.envelope``. Over TLS the certificates say who is there:

    client  READ (checkpoint, path, offset, size, tagged)        server  DATA (size) + bytes [+ tag] | FAULT
    client  TICKET                                               server  TICKETED (id, key, port) | FAULT

With ``encryption = "off"`` the bytes go over a second, plain port. The ticket's key was told over TLS and
never travels again; both ends derive the connection's key from it and two fresh nonces:

    server  CHALLENGE (nonce)      client  OPEN (ticket, nonce, proof)      server  OPENED | FAULT

and every chunk is followed by an AES-GMAC tag over its request and its bytes, numbered, so that nothing on
the way can change, replace or replay one. (Measured here, one core: GMAC 30 GB/s, Poly1305 15, BLAKE3 9.4,
HMAC-SHA256 2.1, BLAKE2b 1.4.) Anybody on the way can read them: that is what "off" means.
"""
