"""What can be learned: one line per task; the spine, `evaluate`, the CLI and its help read this."""

from __future__ import annotations

from hfkit.tasks.base import Task
from hfkit.tasks.chat import Chat
from hfkit.tasks.clm import CausalLM
from hfkit.tasks.completion import Completion
from hfkit.tasks.denoising import Denoising
from hfkit.tasks.mlm import MaskedLM
from hfkit.tasks.mlm_nsp import MaskedLMWithPairs
from hfkit.tasks.question_answering import QuestionAnswering
from hfkit.tasks.seq2seq import Seq2Seq
from hfkit.tasks.text_classification import TextClassification
from hfkit.tasks.token_classification import TokenClassification

TASKS: dict[str, Task] = {
    "clm": CausalLM(),
    "mlm": MaskedLM(),
    "mlm-nsp": MaskedLMWithPairs(),
    "denoising": Denoising(),
    "text-classification": TextClassification(),
    "token-classification": TokenClassification(),
    "question-answering": QuestionAnswering(),
    "seq2seq": Seq2Seq(),
    "completion": Completion(),
    "chat": Chat(),
}

# What a command does by default.
DEFAULT_TASKS = {"pretrain": "clm", "finetune": "text-classification"}
