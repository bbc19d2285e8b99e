"""Reading checkpoints: from a name to a network that runs."""

from janus_core.checkpoint.hub import resolve_checkpoint
from janus_core.checkpoint.loader import load_model, match_tensors

__all__ = ["load_model", "match_tensors", "resolve_checkpoint"]
