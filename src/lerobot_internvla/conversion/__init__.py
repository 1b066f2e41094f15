"""Checkpoints of the reference implementation: its names and files, converted into ours and written back."""
