"""Encoders and models on disk and elsewhere: safetensors, the Hub, ONNX, other people's checkpoints."""
