"""Checkpoints of the reference implementation: its tensor names and configuration files, read and written."""
