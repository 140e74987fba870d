"""Decode image files: bytes -> gray uint8 arrays, in child processes with limits, cached."""
