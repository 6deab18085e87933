"""Refresh policies: when is a new embedding worth its cost? One decides for one arm, for a wave of devices at once."""
