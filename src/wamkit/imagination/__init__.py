"""World models as environments: imagined rollouts, and success read off imagined frames."""
