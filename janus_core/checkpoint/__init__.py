"""Checkpoint directories of both layouts, read by one strict reader."""
