"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hfkit.settings.section import Section, setting

# Two lines a setting: what it is, then its help.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class Columns(Section):
    """The columns to read; if one is not named, hfkit guesses it and prints the guess."""

    text: str | None = setting("--text-column --text-column-name", help="Column with the text.")
    text_pair: str | None = setting("--text-pair-column", only="finetune predict evaluate",
        help="Column with the second text of a pair.")
    label: str | None = setting("--label-column --label-column-name", only="finetune evaluate",
        help="Column with the label, or several 0/1 columns separated by commas.")
    target: str | None = setting("--target-column --summary-column", only="finetune evaluate",
        help="Column with the target text of an encoder-decoder, or with a list of several right ones.")


@dataclass(frozen=True, kw_only=True)
class Csv(Section):
    """The dialect of .csv and .tsv files."""

    separator: str | None = setting("--separator",
        help="Field separator: one character, or tab (default: a comma in .csv, a tab in .tsv).")
    quoting: bool | None = setting("--quoting/--no-quoting", rare=True,
        help="Whether double quotes enclose fields or are ordinary characters (default: they enclose fields in .csv "
             "only).")


@dataclass(frozen=True, kw_only=True)
class Clean(Section):
    """Steps that change or drop training documents, all off by default; each reports how much it removed."""

    unicode_nfc: bool = setting(default=False, only="pretrain", help="Normalize text to Unicode NFC.")
    control_characters: bool = setting(default=False, only="pretrain",
        help="Remove control characters except tab and line end.")
    white_space: bool = setting(default=False, only="pretrain",
        help="Collapse repeated blanks, strip line ends and the ends of the text, keep at most one empty line in a "
             "row.")
    min_characters: int | None = setting(only="pretrain", ge=1, help="Drop shorter documents.")
    max_characters: int | None = setting(only="pretrain", ge=1, help="Drop longer documents.")
    deduplicate: bool = setting(default=False, only="pretrain",
        help="Keep only the first of several documents that are equal byte for byte.")


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Where text comes from: files (.txt .csv .tsv .json .jsonl .parquet, also .gz), a Hub name or `builtin:NAME`."""

    train: list[str] = setting("--data --train-file", [], only="pretrain finetune",
        help="Training data: a file, a folder, a dataset name on the Hub or builtin:NAME; repeatable.")
    validation: list[str] = setting("--validation --validation-file", [], only="pretrain finetune",
        help="Validation data (default: a fraction of the training data is held out).")
    test: list[str] = setting("--test --test-file", [], only="pretrain finetune evaluate",
        help="Test data; in training it is scored once, at the end.")
    validation_split: float = setting(
        "--validation-split", 0.05, only="pretrain finetune", unless="data.validation", ge=0, lt=1,
        help="Fraction of the training data to hold out without --validation; 0 holds out nothing.")
    columns: Columns = field(default_factory=Columns)
    header: bool | None = setting("--header/--no-header",
        help="Whether the first line of .csv and .tsv files names the columns; otherwise they are named 0, 1, ... "
             "(default: a guess).")
    csv: Csv = field(default_factory=Csv)
    encoding: str = setting("--encoding", "utf-8",
        help="Encoding of text files: utf-8, latin-1, ...; if several are separated by commas, each line is decoded "
             "with the first that fits.")
    clean: Clean = field(default_factory=Clean)
    mixture: list[float] = setting(default=[], only="pretrain", unless="data.streaming",
        help="Sampling weights of the sources in data.train, in order; small sources repeat until every document was "
             "used once.")
    documents: Literal["file", "blank-line", "row"] | None = setting("--documents", only="pretrain evaluate",
        help="What one document is in a .txt file: file, blank-line (a paragraph) or row (a line).")
    block_size: int | None = setting("--block-size", only="pretrain", ge=2, help="Tokens in a training block.")
    document_masking: bool = setting("--document-masking/--no-document-masking", True, only="pretrain",
        help="Mask attention between the documents packed into one block.")
    packing: bool = setting("--packing/--no-packing", True, only="pretrain finetune evaluate", rare=True,
        help="Fill blocks with several documents; otherwise each document has examples of its own, padded and ordered "
             "by length (default in conversations: no packing).")
    chat_template: str | None = setting("--chat-template", only="finetune evaluate",
        help="Chat template of conversations: chatml, or a Jinja file; saved with the model (default: the tokenizer's "
             "own).")
    train_on: Literal["all", "assistant", "last"] = setting("--train-on", "assistant", only="finetune evaluate",
        help="What is learned of a conversation: all of it, the assistant's answers, or the last answer.")
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = setting(
        "--problem-type", only="finetune evaluate",
        help="What a label is: single_label_classification, multi_label_classification (any number of labels per "
             "example) or regression (a number) (default: a guess).")
    label_separator: str | None = setting("--label-separator", only="finetune evaluate", rare=True,
        help="Separator between the labels of one example.")
    long_documents: Literal["truncate", "window"] = setting(
        "--long-documents", "truncate", only="finetune predict evaluate",
        help="Truncate examples beyond --max-length, or split them into windows whose logits are pooled; each window "
             "trains as an example.")
    window_overlap: int | None = setting(
        "--window-overlap --doc-stride", only="finetune predict evaluate", needs="data.long_documents=window",
        rare=True, ge=0,
        help="Tokens shared by neighboring windows (default: an eighth of a window).")
    window_pooling: Literal["mean", "max"] = setting(
        "--window-pooling", "mean", only="finetune predict evaluate", needs="data.long_documents=window",
        rare=True,
        help="How to combine the logits of an example's windows: mean, or max per label.")
    subword_labels: Literal["first", "all"] = setting("--subword-labels", "first", only="finetune evaluate", rare=True,
        help="Which tokens of a word are trained to show its tag: the first one, or all (the later ones as I-).")
    source_prefix: str | None = setting("--source-prefix", only="finetune evaluate",
        help="Text before every source, e.g. 'translate English to German: ' for T5; saved in the model.")
    source_suffix: str | None = setting("--source-suffix",
        help="Text between every source and its target, for a decoder (default: a line feed); saved in the model.")
    source_lang: str | None = setting("--source-lang", only="finetune evaluate",
        help="Language of the sources: a key of the column `translation`, or what the tokenizer calls it: de_DE, "
             "deu_Latn.")
    target_lang: str | None = setting("--target-lang", only="finetune evaluate",
        help="Language of the targets; where the tokenizer has languages, every output begins with its token.")
    max_target_length: int | None = setting("--max-target-length", only="finetune evaluate", ge=2,
        help="Maximum tokens of a target; longer ones are truncated and counted (default: the model's limit, at most "
             "512).")
    allow_truncation: bool = setting("--allow-truncation", False, only="finetune evaluate",
        help="Continue even if more than 5% of the examples are truncated.")
    max_length: int | None = setting("--max-length --max-seq-length", only="finetune predict evaluate", ge=2,
        help="Maximum tokens of an example; longer ones are truncated and counted (default: the model's limit, at "
             "most 512, of a conversation 2,048).")
    max_train_samples: int | None = setting(
        "--max-train-samples", only="pretrain finetune", unless="data.streaming", ge=1,
        help="Train on a random sample of this many examples, taken after the validation data is held out.")
    streaming: bool = setting("--streaming", False, only="pretrain",
        help="Read the training data during training instead of loading it first; needs --max-steps or --max-time.")
    shuffle_buffer: int = setting("--shuffle-buffer", 10_000, only="pretrain", needs="data.streaming", rare=True, ge=1,
        help="Size of the shuffle buffer for --streaming, in documents.")
    masking: Literal["token", "whole-word", "span"] = setting("--masking", "token", only="pretrain evaluate",
        help="Unit of masking: single tokens, whole words, or spans of several words.")
    mask_probability: float = setting(
        "--mask-probability --mlm-probability --noise-density", 0.15, only="pretrain evaluate",
        gt=0, lt=1,
        help="Fraction of the tokens that are masked and predicted (0.15 in BERT and T5).")
    mean_span_length: float = setting("--mean-span-length", 3.0, only="pretrain evaluate", rare=True, ge=1,
        help="Mean length in tokens of the spans that are masked (3 in T5).")
