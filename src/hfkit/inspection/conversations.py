"""Conversations as a model would learn them: rendered, with what is learned of one of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hfkit.data.conversations import load_conversations, text_of
from hfkit.errors import DataError, ModelError
from hfkit.inspection.findings import Facts, Findings, of_rows
from hfkit.inspection.lengths import distribution
from hfkit.models.chat_template import set_template
from hfkit.tasks.encoded_conversations import ConversationEncoder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hfkit.settings import Data


def rendered(
    splits: Mapping[str, Dataset],
    data: Data,
    tokenizer: PreTrainedTokenizerBase | None,
    facts: Facts,
    findings: Findings,
) -> dict[str, Dataset]:
    """Each conversation as one text, as the chat template writes it, or without a tokenizer its messages alone.

    Adds to `facts` the turns and roles of each split and, under "conversation", the text of one conversation with the
    places of what is learned of it.
    """
    from datasets import Dataset

    encoder = _encoder(data, tokenizer, findings)
    texts = {}
    for split, dataset in load_conversations(dict(splits), data).items():
        rows = [(json.loads(row["messages"]), json.loads(row["tools"])) for row in dataset]
        roles = Counter(message["role"] for messages, _ in rows for message in messages)
        turns = [sum(message["role"] == "assistant" for message in messages) for messages, _ in rows]
        facts["splits"][split] |= {"turns": distribution(np.array(turns)), "roles": dict(roles.most_common())}
        refused: list[str] = []
        texts[split] = Dataset.from_dict({"text": [_text(encoder, *row, refused) for row in rows]})
        if refused:
            problem = f"{split}: {of_rows(len(refused), len(rows))} can't be rendered: {refused[0]}"
            findings.append((problem, "correct or delete them, or --chat-template FILE"))
        if encoder is not None and "conversation" not in facts and not refused:
            messages, tools = rows[0]
            found = encoder.learned(encoder.template.fitted(messages), tools)[0]
            facts["conversation"] = {"text": found.text, "learned": [[*span] for span in found.spans]}
    return texts


def _encoder(data: Data, tokenizer: PreTrainedTokenizerBase | None, findings: Findings) -> ConversationEncoder | None:
    """None without a tokenizer, and with a finding if it has no chat template."""
    if tokenizer is None:
        return None
    if data.chat_template is not None:
        set_template(tokenizer, data.chat_template)
    try:
        encoder = ConversationEncoder(tokenizer, data.train_on)
    except ModelError as error:
        findings += error.problems
        return None
    encoder.template.say_own_system()
    return encoder


def _text(
    encoder: ConversationEncoder | None, messages: Sequence[dict[str, Any]], tools: list[Any] | None, refused: list[str]
) -> str:
    """The conversation as text; why it can't be rendered is added to `refused`."""
    if encoder is not None:
        try:
            return encoder.template.render(encoder.template.fitted(messages), tools)
        except DataError as error:
            refused.append(error.problems[0][0])
    return "\n".join(map(text_of, messages))
