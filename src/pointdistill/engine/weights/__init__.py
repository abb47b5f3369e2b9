"""Encoders on disk and on the Hub, published checkpoints, and the licences of weights."""
