"""The recipe of janus-mini: its world, its language, and the training stages, each run as a module."""
