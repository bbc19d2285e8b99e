"""Load for a running server, and what it did with it: `janus bench serve`."""
