"""Scoring outside Python: what people run."""
