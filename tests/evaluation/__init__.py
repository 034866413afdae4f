"""Tests of `pipeline/evaluation/`."""
