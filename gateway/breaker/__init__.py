"""Throttles and outages: what responses say, and whether requests may go. Pure."""
