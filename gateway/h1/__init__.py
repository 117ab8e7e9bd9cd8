"""HTTP/1.1 on the wire: bytes to messages and back, with no I/O."""
