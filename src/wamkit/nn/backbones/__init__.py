"""Backbones: what turns a token sequence into features."""
