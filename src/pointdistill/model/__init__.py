"""What the network is: tensors in, tensors out. No files, no loops."""
