"""What networks and runs cost: MACs and parameters, and the energy of a stretch of time."""
