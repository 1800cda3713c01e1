"""The world model as an environment: imagined rollouts and their success."""
