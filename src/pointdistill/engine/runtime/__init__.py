"""Shared by all computations: devices, signals, the optimiser, schedules."""
