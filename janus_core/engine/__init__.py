"""Continuous batching of understanding and generation in one decode batch."""
