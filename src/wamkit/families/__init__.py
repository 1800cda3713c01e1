"""The families of World Action Models, one file each, and the controls that they are compared with."""
