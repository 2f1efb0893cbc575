"""Loops that train policies."""
