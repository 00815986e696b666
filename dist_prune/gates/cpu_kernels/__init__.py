"""Compiled CPU kernels of gates: optional, and equal in results to the torch operations that they replace."""
