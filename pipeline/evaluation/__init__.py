"""Scores of a trained model, how they are computed, and how two runs compare.

`captions` and `retrieval` are pure scores of what was predicted; `runner` makes the predictions;
`compare` puts the results of two runs side by side. This file imports nothing, so that the pure
scores can be used from anywhere without loading the rest.
"""
