"""`python -m gateway` is `egressd`."""

from gateway.cli import main

main()
