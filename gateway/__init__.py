"""egressd, an egress gateway: services send their outbound HTTP through it.

The life of a request, by room:

1. `proxy.downstream` gets octets; `h1` tokenizes a head and judges it (RFC 9112).
2. `routes` names the upstream, `proxy.clients` the client.
3. `breaker`: is the upstream, or this credential, paused? `limits`: does every limit have room?
4. No room: the exchange stands in the row's `waiting.fair_queue` (`proxy.waitroom`), or is refused.
5. `proxy.pool` gives an idle connection, or `connectors.dial` opens one.
6. The head goes out without hop-by-hop fields and with Via (`h1.forward`); bodies stream both ways.
7. The response's status and fields become a signal (`breaker.signals`); `mesh` tells the peers.
8. The outcome is counted, one record goes to `accesslog`, the connection goes back to its pool.

Floors (imports go downward only; tests/test_tidy.py holds them):

    5  cli ctl server operator runtime registry demo composition: signals, uvloop, peers.driver
       supervisor crew control worker                several workers as one node
       listening sockets ports systemd process       what it needs of the operating system
    4  admin mesh accesslog spool                    cold readers
    3  proxy (hot)   connectors (cold)               asyncio from here up
    2  conf routes
    1  h1  limits  waiting  breaker                  pure, and no sibling imports another
    0  errors clock build

Glossary: *downstream* is the client's side, *upstream* the API's; an *exchange* is a request with
its response; a *row* is one counter of a limit, for one key; a *pause* is an open breaker whose
cause is a throttle; the *mesh* is all nodes of one cluster (package `peers`).
"""
