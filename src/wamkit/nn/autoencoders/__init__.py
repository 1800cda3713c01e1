"""Autoencoders: frames to latents and back."""
