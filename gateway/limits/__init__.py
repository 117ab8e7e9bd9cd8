"""Node-local limits: pure, keys and integers, no HTTP, no clock."""
