"""Checkpoints that leave this computer: where they come from, their card, the Hub, a bundle for a robot computer."""
