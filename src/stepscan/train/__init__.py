"""Training: objectives, one readable loop, budgets, schedules, checkpoints, logs."""
