"""Commands on finished or interrupted runs, without a training engine."""
