"""Evaluation results as tables and HTML pages."""
