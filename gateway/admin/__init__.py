"""What a node tells its operator: health, metrics, and everything it knows as one document."""
