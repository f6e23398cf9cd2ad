"""Measures: pure functions over numbers and texts; none loads a model, and trainer/gate.py says what they mean."""
