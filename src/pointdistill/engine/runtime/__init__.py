"""What every computation stands on: devices, signals, the optimiser, schedules."""
