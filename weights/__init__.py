"""The embedded checkpoint and the recipe it was trained by."""
