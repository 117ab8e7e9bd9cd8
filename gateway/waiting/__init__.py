"""Who goes next among the requests that wait: pure, no clock, no HTTP."""
