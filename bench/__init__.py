"""Benchmarks behind the figures of speed, as ratios to a floor in the same run. None is a test."""
