"""Imported by name and not called when a data set is read without augmentation."""
