"""Tests of `pipeline/pages/`."""
