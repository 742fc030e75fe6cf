"""Prediction: a model file, an engine, a picture, a result; no torch."""
