"""Everything between raw data sets and tensors: sources, shards, the plan, the reader."""
