"""The Janus engine: models, checkpoints, prompts and continuous batching. Knows no HTTP."""
