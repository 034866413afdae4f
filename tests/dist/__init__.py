"""Tests that start real DeepSpeed processes on gloo."""
