"""Run folders: configuration, checkpoints, recipes."""
