"""Evaluations: a model and an environment in, figures out; one file each."""
