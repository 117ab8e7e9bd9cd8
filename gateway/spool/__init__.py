"""Durable egress: requests that are accepted now and sent when limits and pauses allow."""
