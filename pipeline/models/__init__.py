"""The models: image towers, ST networks, language models, and the families assembled from them.

Nothing here knows data, losses, phases or DeepSpeed: a model is built through a `Placement`, which
says where its parameters live.
"""

import logging

# peft imports bitsandbytes wherever it is installed; that advises a package of kernels on some
# CPUs, and in each 8-bit product it warns that 8 bits round from half precision.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
