"""Tests of `pipeline/models/`."""
