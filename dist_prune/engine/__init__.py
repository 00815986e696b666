"""The engine: one training loop on DeepSpeed, evaluation, portable checkpoints, the end of a run."""
