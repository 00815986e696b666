"""The process: launch environment, settings, other ranks, signals, failures, the lock of a run folder."""
