"""Places where jobs run in worker processes: this machine, or a cluster."""
