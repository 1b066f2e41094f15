"""Checkpoint folders of this package: whole or not there, loaded strictly, started from base models or adapters."""
