"""Tasks: the loss does not depend on how a step is divided, masks and labels are as defined, scores are right."""

import ast
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, log_loss
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import hfkit
from hfkit import settings
from hfkit.data.labels import IGNORED
from hfkit.errors import DataError, ModelError, UsageError
from hfkit.evaluation.inference import EvaluationRows, predict_rows
from hfkit.tasks import TASKS
from one_step import GRADIENT
from tiny_models import make_bert, make_causal_model, make_gpt2, make_word_tokenizer

CLM, MLM, CLASSIFICATION = TASKS["clm"], TASKS["mlm"], TASKS["text-classification"]
WORDS = "hello world this is a tiny model the quick brown fox jumps over lazy dog".split()  # noqa: SIM905


def sentence(random, length):
    return " ".join(random.choice(WORDS, size=length))


def recipe(task="mlm", *, block_size=32, max_length=None, mask_probability=0.15, **evaluation):
    return settings.Recipe(
        task=task,
        data=settings.Data(block_size=block_size, max_length=max_length, mask_probability=mask_probability),
        evaluation=settings.Evaluation(interval=False, **evaluation),
    )


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return make_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def bert_tokenizer(bert):
    return AutoTokenizer.from_pretrained(bert)


@pytest.fixture(scope="module")
def bert_mlm(bert):
    return AutoModelForMaskedLM.from_pretrained(bert)


@pytest.fixture(scope="module")
def masked_rows(bert_tokenizer, bert_mlm):
    random = np.random.default_rng(0)
    texts = [sentence(random, int(length)) for length in random.integers(1, 200, 120)]
    return MLM.encode(Dataset.from_dict({"text": texts}), bert_tokenizer, bert_mlm, recipe())


@pytest.fixture
def rows_file(tmp_path):
    """Rows of very different lengths, so that forward passes hold very different numbers of scored tokens."""
    random = np.random.default_rng(0)
    lines = [f"{sentence(random, 1 + 5 * (row % 4))}\t{'no' if row % 3 else 'yes'}" for row in range(64)]
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("command", "task", "kind"),
    [("pretrain", "clm", "gpt2"), ("pretrain", "mlm", "bert"), ("finetune", "text-classification", "bert")],
)
@pytest.mark.portable
def test_gradient_does_not_depend_on_accumulation(command, task, kind, rows_file, tmp_path, request):
    """One step of plain SGD at rate 1: the change of the weights is the gradient."""
    weights = {}
    for rows, passes in [(32, 1), (8, 4)]:
        run = tmp_path / f"run-{passes}"
        wanted = {
            "task": task,
            "model.name": str(request.getfixturevalue(kind)),
            "data.train": [str(rows_file)],
            "data.validation_split": 0.0,
            "train.output_dir": str(run),
            **GRADIENT,
            "train.per_device_train_batch_size": rows,
            "train.gradient_accumulation_steps": passes,
        }
        if command == "pretrain":
            wanted |= {"data.block_size": 16, "data.columns.text": "text"}
        hfkit.train(hfkit.load_recipe(command, **wanted))
        weights[passes] = load_file(run / "model.safetensors")
    before = load_file(request.getfixturevalue(kind) / "model.safetensors")
    moved = max((weights[1][name] - before[name]).abs().max().item() for name in before if name in weights[1])
    assert moved > 1e-2
    for name, tensor in weights[1].items():
        # 7e-8 apart; 8e-4 or more where a step is the mean of the means of its passes
        torch.testing.assert_close(tensor, weights[4][name], rtol=0, atol=1e-6)


def test_step_that_scores_nothing_has_a_loss_of_zero():
    """A last block of one token predicts nothing, and the Trainer counts 0 labels in a step of it alone."""
    logits = torch.randn(1, 1, 10, requires_grad=True)
    loss = CLM.loss({"logits": logits}, torch.tensor([[3]]), num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_masking_shares_are_those_of_bert(probability, bert_tokenizer, bert_mlm):
    random = np.random.default_rng(1)
    texts = Dataset.from_dict({"text": [sentence(random, 4000)]})
    rows = MLM.encode(texts, bert_tokenizer, bert_mlm, recipe(mask_probability=probability))
    ordinary = masked = replaced = kept = 0
    for epoch in range(10):
        for index in range(len(rows)):
            row = rows.masking.row(rows.blocks[index])
            example = rows.example(index, np.random.default_rng((epoch, index)))
            tokens, inputs, labels = row["input_ids"], example["input_ids"], example["labels"]
            chosen = labels != IGNORED
            assert (labels[chosen] == tokens[chosen]).all()
            assert (inputs[~chosen] == tokens[~chosen]).all()
            ordinary += row["maskable"].sum()
            masked += (inputs[chosen] == bert_tokenizer.mask_token_id).sum()
            kept += (inputs[chosen] == tokens[chosen]).sum()
            replaced += ((inputs[chosen] != tokens[chosen]) & (inputs[chosen] != bert_tokenizer.mask_token_id)).sum()
    total = masked + replaced + kept
    same = 0.1 / len(rows.masking.shared["ordinary_ids"])  # a random token may be the one that was there
    for count, share, trials in [
        (total, probability, ordinary),
        (masked, 0.8, total),
        (replaced, 0.1 - same, total),
        (kept, 0.1 + same, total),
    ]:
        assert abs(count - trials * share) < 4 * math.sqrt(trials * share * (1 - share))


def test_special_tokens_are_never_masked_nor_put_in(masked_rows, bert_tokenizer):
    special = set(bert_tokenizer.all_special_ids)
    seen = Counter()
    for index in range(len(masked_rows)):
        row = masked_rows.masking.row(masked_rows.blocks[index])
        example = masked_rows.example(index, np.random.default_rng(index))
        changed = example["input_ids"][example["input_ids"] != row["input_ids"]]
        assert not special & set(example["labels"].tolist())
        assert set(changed.tolist()) & special <= {bert_tokenizer.mask_token_id}
        seen.update(row["input_ids"][~row["maskable"]].tolist())
    assert seen[bert_tokenizer.sep_token_id] > len(masked_rows)  # some stand inside a block, between documents


def test_at_least_one_token_is_always_predicted(bert_tokenizer, bert_mlm):
    rows = MLM.encode(
        Dataset.from_dict({"text": ["hello world"]}), bert_tokenizer, bert_mlm, recipe(mask_probability=0.01)
    )
    counts = [(rows.example(0, np.random.default_rng(seed))["labels"] != IGNORED).sum() for seed in range(50)]
    assert set(counts) == {1}


@pytest.mark.portable
def test_masked_evaluation_does_not_depend_on_the_batch_size(masked_rows, bert_tokenizer, bert_mlm):
    ordered = {place: EvaluationRows(masked_rows, seed=5)[place] for place in (7, 3, 0)}
    again = EvaluationRows(masked_rows, seed=5)
    for place in (0, 3, 7):
        assert (again[place]["input_ids"] == ordered[place]["input_ids"]).all()
    scores = []
    for batch_size in (1, 8, 32):
        reduced, _ = predict_rows(MLM, bert_mlm, bert_tokenizer, masked_rows, batch_size=batch_size, seed=5)
        scores.append(MLM.scores(reduced, None, masked_rows, recipe().evaluation))
    for score in scores[1:]:
        assert score["nll"].n == scores[0]["nll"].n
        assert score["nll"].value == pytest.approx(scores[0]["nll"].value, rel=1e-6)
        assert score["token_accuracy"].value == scores[0]["token_accuracy"].value
    other, _ = predict_rows(MLM, bert_mlm, bert_tokenizer, masked_rows, batch_size=8, seed=6)
    assert MLM.scores(other, None, masked_rows, recipe().evaluation)["nll"].value != scores[0]["nll"].value


@pytest.mark.portable
def test_masked_scores_agree_with_a_direct_computation(masked_rows, bert_tokenizer, bert_mlm):
    evaluation = EvaluationRows(masked_rows, seed=0)
    nll, right, count = 0.0, 0, 0
    for place in range(len(evaluation)):
        example = evaluation[place]
        with torch.no_grad():
            logits = bert_mlm.eval()(input_ids=torch.tensor(example["input_ids"])[None]).logits[0]
        for position in np.flatnonzero(example["labels"] != IGNORED):
            token = example["labels"][position]
            nll -= torch.log_softmax(logits[position].double(), 0)[token].item()
            right += int(logits[position].argmax() == token)
            count += 1
    reduced, _ = predict_rows(MLM, bert_mlm, bert_tokenizer, masked_rows, batch_size=16)
    scores = MLM.scores(reduced, None, masked_rows, recipe().evaluation)
    assert scores["nll"].n == count
    assert scores["nll"].value == pytest.approx(nll / count, rel=1e-6)
    assert scores["perplexity"].value == pytest.approx(math.exp(nll / count), rel=1e-6)
    assert scores["token_accuracy"].value == right / count


def test_tokenizer_without_a_mask_token_is_refused(gpt2, bert_mlm):
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    with pytest.raises(ModelError, match="has no mask token"):
        MLM.encode(Dataset.from_dict({"text": ["hello world"]}), tokenizer, bert_mlm, recipe())


def test_eos_keeps_its_label_where_it_is_also_the_pad_token():
    tokenizer = make_word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    texts = Dataset.from_dict({"text": ["w1 w2", "w3", "w4 w5 w6 w7"]})
    rows = CLM.encode(texts, tokenizer, make_causal_model(), recipe("clm", block_size=6))
    batch = CLM.collate([rows.example(index, None) for index in (0, 1)], tokenizer)
    assert batch["input_ids"].tolist() == [[2, 3, 0, 4, 0, 5], [6, 7, 8, 0, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 3, 0, IGNORED, 0, IGNORED], [IGNORED, 7, 8, 0, IGNORED, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]
    assert set(batch) == {"input_ids", "labels", "position_ids"}


def test_documents_without_an_end_token_between_them_are_refused():
    tokenizer = make_word_tokenizer(eos=None)
    with pytest.raises(ModelError, match="no end-of-text token to put between documents"):
        CLM.encode(Dataset.from_dict({"text": ["w1 w2", "w3"]}), tokenizer, make_causal_model(), recipe("clm"))
    rows = CLM.encode(Dataset.from_dict({"text": ["w1 w2 w3"]}), tokenizer, make_causal_model(), recipe("clm"))
    assert rows.blocks[0]["input_ids"].tolist() == [2, 3, 4]


def test_causal_loss_predicts_the_next_token_and_copies_no_logits():
    logits, labels = torch.randn(2, 5, 11), torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, IGNORED, IGNORED]])
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(CLM.loss({"logits": logits}, labels), expected)
    aligned, targets = CLM.align(logits, labels)
    assert aligned is logits
    assert targets.tolist() == [[2, 3, 4, 5, IGNORED], [7, 8, IGNORED, IGNORED, IGNORED]]


@pytest.mark.portable
def test_causal_statistics_count_every_token_but_padding_and_eos_apart():
    tokenizer, model = make_word_tokenizer(), make_causal_model().eval()
    texts = Dataset.from_dict({"text": ["w4 w5 w6", "w8 w2 w1 w7"]})  # with EOS nine tokens
    rows = CLM.encode(texts, tokenizer, model, recipe("clm", block_size=5))
    with torch.no_grad():
        batch = CLM.collate([rows.example(index, None) for index in (0, 1)], tokenizer)
        labels = batch.pop("labels")
        reduced = CLM.reduce(model(**batch, use_cache=False).to_tuple(), labels, tokenizer)
        expected = []
        for ids in ([5, 6, 7, 0], [3, 2, 8, 0]):  # the fifth token of the first block opens a document: nothing to say
            logits = model(input_ids=torch.tensor(ids)[None]).logits[0].double()
            nll = -torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            right = logits[:-1].argmax(-1) == torch.tensor(ids[1:])
            expected.append([nll[:-1].sum(), 2, right[:-1].sum(), nll[-1], 1, right[-1]])
    torch.testing.assert_close(reduced, torch.tensor(expected, dtype=torch.double), rtol=0, atol=1e-4)
    scores = CLM.scores(reduced.numpy(), labels.numpy(), rows, recipe("clm").evaluation)
    nll, tokens, _, eos, closing, _ = reduced.sum(0).tolist()
    assert (tokens, scores["nll"].n, closing) == (4, 4, 2)
    assert scores["nll"].value == pytest.approx(nll / 4)
    assert scores["eos_nll"].value == pytest.approx(eos / 2)
    # 7 words make 19 bytes; 4 of them were scored
    assert scores["bits_per_byte"].value == pytest.approx(nll / math.log(2) / (19 * 4 / 7))
    assert CLM.loss(model(**batch, use_cache=False), labels).item() == pytest.approx((nll + eos) / 6, rel=1e-5)


def test_nothing_to_score_is_an_error_rather_than_a_number(masked_rows):
    with pytest.raises(DataError, match="no token could be scored"):
        MLM.scores(np.zeros((2, 3)), np.zeros((2, 1)), masked_rows, recipe().evaluation)


def labelled(labels, feature=None):
    texts = [f"text {row}" for row in range(len(labels))]
    features = None if feature is None else Features({"text": Value("string"), "label": feature})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def names_of(labels, config, feature=None):
    keys = CLASSIFICATION.model_config({"train": labelled(labels, feature)}, config)
    assert keys["label2id"] == {name: index for index, name in keys["id2label"].items()}
    return [keys["id2label"][index] for index in range(len(keys["id2label"]))]


def test_labels_keep_the_order_of_their_class_label(bert):
    config = AutoConfig.from_pretrained(bert)
    assert names_of([2, 0, 1], config, ClassLabel(names=["z", "a", "m"])) == ["z", "a", "m"]


def test_labels_keep_the_order_of_the_model_that_knows_them(bert):
    own = {"id2label": {0: "pos", 1: "neg", 2: "so-so"}, "label2id": {"pos": 0, "neg": 1, "so-so": 2}}
    config = AutoConfig.from_pretrained(bert, **own)
    assert names_of(["neg", "so-so", "pos"], config) == ["pos", "neg", "so-so"]
    assert names_of(["neg", "pos"], config) == ["neg", "pos"]  # other names: their own order


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        ([10, 9, 1], ["1", "9", "10"]),
        ([1, 0, -1], ["-1", "0", "1"]),
        ([1.5, 10.0, 2.0], ["1.5", "2.0", "10.0"]),
        (["grade 10", "grade 9", "pass"], ["grade 9", "grade 10", "pass"]),
        (["b", "a", "3"], ["3", "a", "b"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_other_labels_come_in_natural_order(bert, labels, order):
    assert names_of(labels, AutoConfig.from_pretrained(bert)) == order


def test_one_label_only_is_refused(bert):
    config = AutoConfig.from_pretrained(bert)
    for labels, feature in [(["a", "a"], None), ([0, 0], ClassLabel(names=["a", "b"]))]:
        with pytest.raises(DataError, match="the training data has one label only: 'a'"):
            names_of(labels, config, feature)


def test_label_that_training_never_saw_is_named_with_its_row(bert):
    splits = {"train": labelled(["a", "b"]), "validation": labelled(["a", "b", "c"])}
    with pytest.raises(DataError, match="validation data, row 3: label 'c' is not a label of the training data: a, b"):
        CLASSIFICATION.model_config(splits, AutoConfig.from_pretrained(bert))


def encoded(texts, bert, tokenizer, pairs=None, num_labels=2, **data):
    columns = {"text": texts} | ({} if pairs is None else {"text_pair": pairs})
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=num_labels)
    return CLASSIFICATION.encode(Dataset.from_dict(columns), tokenizer, model, recipe("text-classification", **data))


def test_length_beyond_the_positions_is_refused(bert, bert_tokenizer):
    with pytest.raises(UsageError, match=r"data\.max_length 65 .* 64 tokens \(fix: --max-length 64\)"):
        encoded(["hello"], bert, bert_tokenizer, max_length=65)


def test_pairs_are_two_segments(bert, bert_tokenizer):
    row = encoded(["hello world"], bert, bert_tokenizer, pairs=["this is"]).example(0)
    assert bert_tokenizer.decode(row["input_ids"]) == "[CLS] hello world [SEP] this is [SEP]"
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_classification_scores_agree_with_scikit_learn(bert, bert_tokenizer):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 3)).astype(np.float32), random.integers(0, 3, 200)
    names = ["accuracy", "f1_macro", "log_loss"]
    rows = encoded(["hello"] * 200, bert, bert_tokenizer, num_labels=3)
    scores = CLASSIFICATION.scores(logits, labels, rows, recipe("text-classification", metrics=names).evaluation)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert scores["accuracy"].value == accuracy_score(labels, logits.argmax(1))
    assert scores["f1_macro"].value == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    assert scores["log_loss"].value == pytest.approx(log_loss(labels, shares), rel=1e-5)
    usual = CLASSIFICATION.scores(logits, labels, rows, recipe("text-classification").evaluation)
    assert list(usual) == ["accuracy", "f1_macro", "log_loss"]


def test_nothing_outside_tasks_names_a_task():
    """Neither by its name nor by its module: a new task is one new file and one line in TASKS.

    Two names are others', too: that of a command, and that of a column."""
    source = Path(hfkit.__file__).parent
    modules = {type(task).__module__ for task in TASKS.values()}
    names = TASKS.keys() - {"chat", "completion"}
    found = []
    for file in source.rglob("*.py"):
        if file.is_relative_to(source / "tasks"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Constant) and node.value in names
            if named or (isinstance(node, ast.ImportFrom) and node.module in modules):
                found.append(f"{file.relative_to(source)}:{node.lineno}")
    assert found == []
