"""Reference models of known rank, and what each metric must make of them."""
