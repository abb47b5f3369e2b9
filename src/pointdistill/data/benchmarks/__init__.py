"""Labelled sets with their official splits, read in place from the archives that users have.

Empty, so that importing the list of benchmarks from ``registry`` loads neither NumPy nor h5py.
"""
