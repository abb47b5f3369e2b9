"""Pretraining: a run from what was asked for to what is left on disk."""
