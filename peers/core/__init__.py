"""The mesh, sans-IO: bytes and times go in, bytes, times and events come out.

`node.Node` composes the parts: sessions (who may speak) and keyring (sealed how), members, probe,
suspicion and broadcast (who is alive), rows, counters and gossip (the shared counters), breakers
(the shared pauses), snapshot (what a joiner is told first). Times are monotonic nanoseconds.
"""
