"""Reconstruction of hidden patches from frozen features."""
