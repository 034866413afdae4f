"""EIM: train a multimodal LLM better through its training process.

The library behind `stages/`. It assumes nothing about where it runs: a laptop or a cluster, one
process or many. Importing this package executes nothing and loads no heavy dependency.
"""

__version__ = "0.1.0"
