"""How connections are opened: cold, a task each."""
