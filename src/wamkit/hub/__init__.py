"""The Hugging Face Hub: names of repositories on it, downloads into its cache, and uploads."""
