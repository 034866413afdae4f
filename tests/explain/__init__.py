"""Tests of the plans' parts; what a whole plan says is in tests/test_explain.py."""
