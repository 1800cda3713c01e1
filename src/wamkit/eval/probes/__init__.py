"""Learned readers of images: object states, segments, actions."""
