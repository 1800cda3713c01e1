"""A trained model in use: queries, policies."""
