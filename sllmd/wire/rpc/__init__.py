"""Calls between nodes: many at once over one connection, unary or streaming, with deadlines and credit.

Owns: framing, the hello, calls and streams, keepalive, the pool of connections. Knows nothing of what methods
mean. Start at ``connection``; then ``outgoing`` (calls that we make), ``serving`` (calls that we answer),
``listener`` and ``peers``. ``envelope``, ``hello`` and ``faults`` are pure.

::

    u32 payload bytes | u8 protocol version | u8 kind | payload: one msgpack value        (little endian)

Both sides send HELLO at once, judge the other's and say WELCOME or GOODBYE; they talk in the highest version
that both know. After that either side calls:

=========  =====================================================  ==========================================
kind       payload                                                from
=========  =====================================================  ==========================================
HELLO      {cluster, node, versions: (least, most), facts}        both, first
WELCOME    nil                                                    either, second
CALL       (call, method, body, deadline in ms or nil, credit)    caller; credit in bytes, 0: unary
RESULT     (call, body)                                           callee: the end of a unary call
ITEMS      (call, item, call, item, ...)                          callee: items as bytes, of any streams
END        (call,)                                                callee: a stream's end
FAULT      (call, (kinds, code, message, hint, fields))           callee: the end of any call
CREDIT     (call, bytes)                                          caller: so much was read of a stream
CANCEL     (call,)                                                caller: it left
NOTE       (method, body)                                         either: no answer
PING PONG  nil                                                    either
GOODBYE    (code, message, hint)                                  either, last
=========  =====================================================  ==========================================
"""
