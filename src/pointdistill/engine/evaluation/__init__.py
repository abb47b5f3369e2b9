"""Evaluation: the protocols of section 7 of docs/method.md, in memory and from archives on disk.

Empty, since modules import in both directions: fine-tuning takes its scores from ``probe``, and the protocols that
train an encoder take fine-tuning.
"""
