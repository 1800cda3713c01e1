"""Trackers of training runs, one file each."""
