"""Pretraining, from a user's settings to the encoder and checkpoints on disk."""
