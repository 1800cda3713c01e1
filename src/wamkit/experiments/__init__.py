"""Comparisons: many recipes under one budget."""
