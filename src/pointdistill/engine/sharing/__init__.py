"""Sharing of encoders and models: safetensors, ONNX, model cards, the Hugging Face Hub."""
