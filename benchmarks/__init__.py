"""Measurements of speed, each one command; dated reports are in `results/`."""
