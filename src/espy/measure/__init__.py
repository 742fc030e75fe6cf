"""Metrics in numpy: how good a prediction is, from truth and prediction alone."""
