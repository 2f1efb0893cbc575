"""Torch modules without training knowledge."""
