"""Gates: heads, gating modules, their insertion into networks, and their means over the global batch."""
