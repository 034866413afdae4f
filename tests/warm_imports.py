"""What the process imports from which ranks are forked: all that the stages use.

Nothing here may start a thread or touch the process group.
"""

import deepspeed  # noqa: F401

import pipeline.conversion
import pipeline.evaluation.mme_runner
import pipeline.evaluation.questions
import pipeline.evaluation.runner
import pipeline.explain.stages
import pipeline.pretrain
import pipeline.run
import pipeline.stage  # noqa: F401
