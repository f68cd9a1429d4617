"""Weights of one network in another, and parts of a network that stay as they are."""
