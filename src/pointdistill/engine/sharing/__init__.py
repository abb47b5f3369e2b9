"""Encoders for others: safetensors, ONNX, model cards, the Hub."""
