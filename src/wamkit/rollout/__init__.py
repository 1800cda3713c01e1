"""Acting in an environment: the one loop, and collection."""
