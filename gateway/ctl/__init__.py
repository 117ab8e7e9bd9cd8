"""`egressd ctl` and `egressd top`: the admin interface from a terminal."""
