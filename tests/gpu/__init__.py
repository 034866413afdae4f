"""Tests for machines with GPUs: bf16, NCCL, offload. `make test-gpu` runs them alone."""
