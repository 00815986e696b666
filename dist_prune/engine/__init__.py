"""The one door to DeepSpeed: its import, the engine, the check of its JSON."""
