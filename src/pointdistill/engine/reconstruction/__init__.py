"""Filling hidden patches from frozen features."""
