"""Labelled sets with their official splits, read in place from the archives that users have.

Empty, so that the list of benchmarks can be had from ``registry`` without loading NumPy and h5py.
"""
