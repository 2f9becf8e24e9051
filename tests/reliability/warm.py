"""Imported once by the server of forks: what every run would otherwise do again in its first second."""

import gc
import importlib

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

for module in (
    "accelerate.utils.memory",
    "datasets",
    "hfkit.training.callbacks",
    "hfkit.cli",
    "hfkit.evaluation.evaluate",
    "hfkit.generation.generator",
    "hfkit.evaluation.inference",
    "hfkit.evaluation.predict",
    "hfkit.training.train",
    "torch.distributed",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt2.tokenization_gpt2",
    "transformers.trainer",
):
    importlib.import_module(module)
get_checkpoint_conversion_mapping("gpt2")  # compiles a thousand regular expressions, and keeps them
gc.collect()
gc.freeze()  # a million objects that no collection in a fork needs to look at
