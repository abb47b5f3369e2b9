"""The network and its views: functions and modules on tensors, without files or training loops."""
