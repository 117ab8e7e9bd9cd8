"""A distributed rate limiter without a store: nodes gossip counters, pauses and who is alive.

`core` is sans-IO: state, no socket, clock, chance or logger. `driver` moves its datagrams with
asyncio and decides nothing. `sim` runs the same core in virtual time. The wire is written down in
PROTOCOL.md. Nothing here imports the gateway: this package can be used without it.
"""
