"""Evaluation: the protocols of section 7 of docs/method.md, in memory and from archives on disk.

Nothing is imported here: fine-tuning takes its scores from ``probe``, and the trained protocols take fine-tuning.
"""
