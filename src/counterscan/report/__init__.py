"""Counterparts for people: an HTML page per run, and files per image."""
