"""The models: image towers, ST networks, language models, and the families assembled from them.

Nothing here knows data, losses, phases or DeepSpeed: a model is built through a `Placement`, which
says where its parameters live.
"""
