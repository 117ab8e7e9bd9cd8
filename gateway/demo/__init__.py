"""`egressd demo`: the gateway shown at work, with its own origin, load and judge."""
