"""The network's two hard functions: attention and sampling."""
