"""Decode image files to gray uint8 arrays, cached for training, in confined child processes."""
