"""A model in other forms: as ONNX and as a program of torch, in int8, and with its smallest weights struck out."""
