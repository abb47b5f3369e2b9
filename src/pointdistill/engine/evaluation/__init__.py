"""Evaluation: the protocols of section 7 of docs/method.md, in memory and from archives on disk.

Empty, so that a command which needs one module does not load the others.
"""
