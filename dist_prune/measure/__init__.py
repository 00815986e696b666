"""Costs of networks and runs: MACs, parameters and energy."""
