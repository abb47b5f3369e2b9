"""Supervised training of classifiers and segmenters on a benchmark or a user's own folder, and prediction."""
