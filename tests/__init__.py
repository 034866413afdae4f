"""The tests; the folders mirror `pipeline/`."""
