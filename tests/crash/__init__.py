"""Runs that are killed and resumed, against the same runs left alone."""
