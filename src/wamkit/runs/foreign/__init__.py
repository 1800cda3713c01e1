"""Released checkpoints of other programs as runs."""
