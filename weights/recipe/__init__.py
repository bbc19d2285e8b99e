"""The recipe of janus-mini: its world, its language, its training stages, each a module to run."""
