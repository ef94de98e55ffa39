"""Finds the page tested in a browser."""
