"""The data path: connections, exchanges, pools. No task, future or timer per request."""
