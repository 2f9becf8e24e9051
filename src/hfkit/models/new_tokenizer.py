"""New tokenizers, and what a tokenizer makes of a text."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.data.sources import offline_if_local
from hfkit.errors import DataError, StorageError, UsageError, did_you_mean
from hfkit.models.pieces import pieces, word_units
from hfkit.models.tokenizer import open_tokenizer
from hfkit.system.console import say, warn
from hfkit.system.files import locked, new_directory

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PIECE = 10_000  # characters of the pieces of a long text, of which a tokenizer learns

# The tokenizer class that is trained for a new model: byte-level BPE but for BERT's WordPiece and T5's Unigram.
NEW_TOKENIZERS = {
    "bert": "BertTokenizer",
    "t5": "T5Tokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "RobertaTokenizer",
    "modernbert": "RobertaTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
}

BYTE_LEVEL_BPE = "GPT2Tokenizer"

OWN_ALGORITHMS = {"BertTokenizer": "wordpiece", "T5Tokenizer": "unigram"}  # all others: bpe

ALGORITHMS = {"bpe": "byte-level BPE", "wordpiece": "WordPiece", "unigram": "Unigram", "char": "character"}

UNIGRAM_STEP = 0.0001  # between the scores that the Unigram trainer gives to characters that it has none for

BATCH_CHARACTERS = 200_000


def train_tokenizer(
    corpus: Iterable[str], model_type: str, vocab_size: int, algorithm: str | None = None
) -> PreTrainedTokenizerBase:
    """A new tokenizer with the special tokens that `model_type` needs, a pad token among them; `vocab_size` counts all.

    `algorithm` is one of ALGORITHMS, None for the model type's own. bpe, unigram and char keep case and white space,
    so they give every text of known characters back, but for T5's own unigram (any white space is one blank); wordpiece
    drops white space, and BERT's own also case and accents. For t5 the sentinels <extra_id_0> to <extra_id_99> have the
    ids 102 down to 3: descending, as T5's, but at the front.
    Raises DataError if there is no text, UsageError if `vocab_size` is too small for it.
    """
    import transformers

    name = NEW_TOKENIZERS.get(model_type, BYTE_LEVEL_BPE)
    own = OWN_ALGORITHMS.get(name, "bpe")
    algorithm = algorithm or own
    special = {"pad_token": "<|pad|>"} if name == BYTE_LEVEL_BPE else {}
    if special and algorithm != "bpe":  # bytes are never unknown; what is must not look like the end of a text
        special["unk_token"] = "<|unk|>"
    blank = getattr(transformers, name)(**special)
    if algorithm != own:
        blank = _with_algorithm(blank, algorithm)
    num_special = len(blank.added_tokens_decoder)
    if algorithm == "wordpiece" and iter(corpus) is corpus:
        corpus = list(corpus)  # it is read twice
    written = itertools.dropwhile(lambda text: not text.strip(), corpus)
    first = next(written, None)
    if first is None:
        raise DataError("there is no text to train a tokenizer on", "give data with text")
    texts = itertools.chain([first], written)
    parts = [_characters(texts, vocab_size, num_special)] if algorithm == "char" else _pieces(texts, blank)
    try:
        tokenizer = blank.train_new_from_iterator(parts, vocab_size=vocab_size, show_progress=False)
    except Exception as error:  # the trainer raises no narrower class
        if "not large enough" not in str(error):
            raise
        fix = "a larger --vocab-size, or the algorithm bpe"
        raise UsageError(f"{vocab_size:,} entries can't hold every character of the text", fix) from None
    _require_within(vocab_size, tokenizer, algorithm, num_special)
    if algorithm == "unigram":
        _settle_unigram(tokenizer)
    if algorithm == "wordpiece":
        _settle_wordpiece(tokenizer, blank, corpus, vocab_size)
    say(f"tokenizer: new {ALGORITHMS[algorithm]} tokenizer, {len(tokenizer):,} entries, from the training text")
    return tokenizer


def _require_within(vocab_size: int, tokenizer: PreTrainedTokenizerBase, algorithm: str, num_special: int) -> None:
    """UsageError if the tokenizer has more than `vocab_size` entries."""
    if len(tokenizer) > vocab_size:
        what = "the 256 bytes" if algorithm == "bpe" else "every character of the text"
        message = f"{vocab_size:,} entries can't hold {what} and {num_special} special tokens"
        raise UsageError(message, f"--vocab-size {len(tokenizer)} or more")


def shared_tokenizer(
    corpus: Iterable[str], model_type: str, vocab_size: int, algorithm: str | None = None
) -> PreTrainedTokenizerBase:
    """As `train_tokenizer`; of several processes one trains it, and the others read it from the cache."""
    import datasets
    import tokenizers
    import xxhash

    corpus = list(corpus) if iter(corpus) is corpus else corpus  # it is read twice
    facts = [model_type, vocab_size, algorithm, tokenizers.__version__]
    digest = xxhash.xxh3_128(json.dumps(facts).encode())
    for text in corpus:
        digest.update(f"\0{len(text)}\0{text}".encode())
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hfkit" / f"tokenizer-{digest.hexdigest()}"
    try:
        with locked(folder):
            if not (folder / "tokenizer.json").exists():
                tokenizer = train_tokenizer(corpus, model_type, vocab_size, algorithm)
                with new_directory(folder) as staged:
                    tokenizer.save_pretrained(staged)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}", "set HF_DATASETS_CACHE=FOLDER") from error
    return open_tokenizer(str(folder))


def _with_algorithm(blank: PreTrainedTokenizerBase, algorithm: str) -> PreTrainedTokenizerBase:
    """An untrained tokenizer that divides text by `algorithm` and has the special tokens of `blank`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [token for _, token in sorted(blank.added_tokens_decoder.items())]
    unknown = str(blank.unk_token)
    if algorithm == "bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    elif algorithm == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token=unknown))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
    elif algorithm == "unigram":
        backend = Tokenizer(
            models.Unigram([(str(token), 0.0) for token in special], [str(t) for t in special].index(unknown))
        )
        lines = pre_tokenizers.Split("\n", "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="never")])
        backend.decoder = decoders.Metaspace(prepend_scheme="never")
    else:  # BPE without merges; what is between blanks is one word for word_ids(), which masks whole words
        backend = Tokenizer(models.BPE(unk_token=unknown))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "isolated")
        backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    backend.post_processor = blank.backend_tokenizer.post_processor
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens=blank.extra_special_tokens,
        model_input_names=blank.model_input_names,
        **blank.special_tokens_map,
    )


def _characters(texts: Iterable[str], vocab_size: int, num_special: int) -> list[str]:
    """The different characters of all texts, the most frequent ones that fit; prints those left out."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    needed = f"--vocab-size {len(counts) + num_special}"
    if vocab_size <= num_special:
        raise UsageError(f"{vocab_size:,} entries can't hold more than the {num_special} special tokens", needed)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    if lost := ranked[vocab_size - num_special :]:
        times = sum(counts[character] for character in lost)
        share = f"{times:,} of {counts.total():,} in the text ({times / counts.total():.2%})"
        warn(f"{len(lost):,} of {len(counts):,} different characters get no entry; they are {share}", needed)
    return ranked[: vocab_size - num_special]


def _pieces(corpus: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterable[list[str]]:
    """Lists of short pieces with the words of the whole: the trainer counts words, and one huge text costs memory."""
    units = word_units(tokenizer.backend_tokenizer)
    for text in corpus:
        yield list(pieces(text, units, PIECE))


def _settle_unigram(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes equal corpora give equal tokenizers, as BPE does by itself.

    The trainer goes through hash tables whose order is drawn anew each time. It finds the same pieces, but sums their
    scores in another order (so the last digits differ, and with them the order of equal ones), and deals characters
    without a score of their own the lowest one, and one step more each, in another order.
    """
    from tokenizers import models

    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    num_special = len(tokenizer.added_tokens_decoder)
    special, pieces = model["vocab"][:num_special], model["vocab"][num_special:]
    lowest = min((score for _, score in pieces), default=0.0)

    def settled(piece: str, score: float) -> float:
        steps = (score - lowest) / UNIGRAM_STEP
        dealt = len(piece) == 1 and steps < len(pieces) and abs(steps - round(steps)) < 1e-6
        return round(lowest if dealt else score, 4)

    pieces = [(piece, settled(piece, score)) for piece, score in pieces]
    pieces.sort(key=lambda entry: (-entry[1], entry[0]))
    backend.model = models.Unigram([*map(tuple, special), *pieces], model["unk_id"], model["byte_fallback"])


def _settle_wordpiece(
    tokenizer: PreTrainedTokenizerBase, blank: PreTrainedTokenizerBase, corpus: Iterable[str], vocab_size: int
) -> None:
    """Makes equal corpora give equal tokenizers, as BPE does by itself.

    The trainer numbers the characters inside words (##x) in the order of a hash table that is drawn anew each time, and
    takes the lower number among pairs that are equally frequent. So it is trained once more, with them given in order.
    """
    from tokenizers import models

    inner = sorted(entry for entry in tokenizer.get_vocab() if entry.startswith("##") and len(entry) == 3)
    settled = blank.train_new_from_iterator(
        _pieces(corpus, blank), vocab_size=vocab_size, new_special_tokens=inner, show_progress=False
    )
    tokenizer.backend_tokenizer.model = models.WordPiece(settled.get_vocab(), unk_token=str(tokenizer.unk_token))


def train_on(
    sources: Sequence[str],
    output_dir: Path,
    *,
    vocab_size: int,
    algorithm: str | None = None,
    model_type: str = "gpt2",
    text_column: str | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer that `train_tokenizer` makes of all `sources`, saved to `output_dir`, which is new or empty.

    The directory is there with all of its files or not at all. Raises UsageError, DataError or StorageError.
    """
    from hfkit.system.files import new_directory, require_writable

    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise UsageError(f"{output_dir}: not empty", "--output-dir NEW")
    require_writable(output_dir)
    from transformers import CONFIG_MAPPING

    from hfkit.models.config import quiet_libraries

    quiet_libraries()
    if model_type not in CONFIG_MAPPING:
        near = did_you_mean(model_type, CONFIG_MAPPING) or "--model-type gpt2"
        raise UsageError(f"--model-type '{model_type}' is unknown", near)
    with offline_if_local([], sources):
        dataset, column = texts_of(sources, "file", text_column)
    tokenizer = train_tokenizer(dataset[column], model_type, vocab_size, algorithm)
    try:
        with new_directory(output_dir) as staged:
            tokenizer.save_pretrained(staged)
    except OSError as error:
        raise StorageError(f"{output_dir}: can't be written: {error.strerror}", "--output-dir ELSEWHERE") from error
    return tokenizer


def texts_of(sources: Sequence[str], documents: str, column: str | None) -> tuple[Dataset, str]:
    """All sources as one data set, and its column with the text."""
    from hfkit.data.columns import text_column
    from hfkit.data.loading import load_source
    from hfkit.data.readers import FIXED
    from hfkit.settings import Columns, Data

    dataset = load_source(sources, documents, layout=FIXED)
    given = Data(train=list(sources), columns=Columns(text=column), header=True)  # no option says otherwise
    return dataset, text_column(dataset, given)
