"""Models trained with labels: classifiers and segmenters, from a benchmark or a user's own folder."""
