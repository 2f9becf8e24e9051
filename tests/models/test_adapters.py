"""Adapters are trained beside weights that stay as they are, saved without them, read back, merged; frozen ones too."""

import json
import random
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_hub_commands import say
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hfkit import predict
from hfkit.cli.main import main
from hfkit.errors import ModelError
from hfkit.models.adapters import require_same
from hfkit.models.saving import export
from stand_in_hub import StandInHub
from tiny_models import TEXT, make_bert, make_causal_model, make_gpt2, make_word_tokenizer

TEXTS = ["hello world", "the quick fox", "a lazy dog jumps over this model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tiny models, a table with three labels, and a text."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    make_bert(folder / "bert")
    make_gpt2(folder / "gpt2")
    make_causal_model(vocabulary=51).save_pretrained(folder / "llama")
    make_word_tokenizer().save_pretrained(folder / "llama")
    words, draw = [word for text in TEXT for word in text.split()], random.Random(0)
    rows = [" ".join(draw.choices(words, k=draw.randint(4, 12))) for _ in range(40)]
    labels = ["yes" if "fox" in row else "no" if "dog" in row else "maybe" for row in rows]
    table = [f'"{row}",{label}' for row, label in zip(rows, labels, strict=True)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *table]), encoding="utf-8")
    (folder / "text.txt").write_text(" ".join(f"w{draw.randrange(50)}" for _ in range(600)), encoding="utf-8")
    return folder


def finetune(folder, run, *more, model="bert", data=None):
    """The exit code of a run of ten steps, with dropout in the model."""
    steps = ["--max-steps", "10", "--save-steps", "5", "--eval-steps", "5", "--batch-size", "4", "--lr", "0.02"]
    data = ["--data", str(data or folder / "rows.csv"), "--output-dir", str(run), "--no-interval"]
    return main(["finetune", "--model", str(folder / model), *data, *steps, *more])


@pytest.fixture(scope="module")
def run(folder):
    """A LoRA run of a classifier, with dropout in its adapters, too."""
    assert finetune(folder, folder / "run", "--lora", "--lora-dropout", "0.1") == 0
    return folder / "run"


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def probabilities(model):
    return torch.tensor([list(answer["probabilities"].values()) for answer in predict(str(model), TEXTS)])


def test_run_holds_adapters_and_head_alone(run):
    files = {path.name for path in run.iterdir() if path.is_file()}
    assert {"adapter_config.json", "adapter_model.safetensors", "model_config.json", "tokenizer.json"} <= files
    assert not files & {"config.json", "model.safetensors"}
    names = {name.removeprefix("base_model.model.") for name in weights(run)}
    new = {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    layers = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    layers += ("intermediate.dense", "output.dense")
    adapters = {
        f"bert.encoder.layer.{number}.{layer}.lora_{side}.weight"
        for number in range(2)
        for layer in layers
        for side in "AB"
    }
    assert names == new | adapters
    assert all(weights(run)[f"base_model.model.{name}"].any() for name in names)
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(run.parent / "bert")


def test_base_weights_are_untouched(folder, run):
    before = load_file(folder / "bert" / "model.safetensors")
    config = AutoConfig.from_pretrained(run / "model_config.json")
    model = AutoModelForSequenceClassification.from_pretrained(run, config=config)  # by transformers alone
    after = {name.replace(".base_layer", ""): weight for name, weight in model.state_dict().items()}
    body = [name for name in before if name.startswith("bert.")]
    assert len(body) == 37
    assert all(torch.equal(before[name], after[name]) for name in body)


def test_trained_share_is_said(folder, tmp_path, capsys):
    assert finetune(folder, tmp_path / "run", "--lora", "--lora-r", "4", "--lora-targets", "query,value") == 0
    adapters, head = 2 * 2 * 4 * (16 + 16), (16 * 16 + 16) + (16 * 3 + 3)
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model_config.json")
    plain = AutoModelForSequenceClassification.from_config(config).num_parameters()
    said = f"{adapters + head:,} of {plain + adapters + head:,} parameters are trained"
    assert f"LoRA of rank 4, bert.pooler.dense, classifier whole: {said}" in capsys.readouterr().err


def test_adapters_learn_ten_times_as_fast(capsys):
    rates = []
    for more in ([], ["--lora"], ["--lora", "--lr", "1e-3"]):
        assert main(["finetune", "--model", "bert", "--dry-run", *more]) == 0
        rates.append(yaml.safe_load(capsys.readouterr().out)["train"]["learning_rate"])
    assert rates == [5e-5, 5e-4, 1e-3]


def test_commands_open_the_run(run, capsys):
    assert main(["predict", str(run), "--text", "the quick fox", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["probabilities"]) == {"maybe", "no", "yes"}
    assert main(["evaluate", str(run), "--json", "--no-interval"]) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["value"]
    assert measured == json.loads((run / "all_results.json").read_text())["eval_accuracy"]


@pytest.mark.portable
def test_checkpoint_answers_as_the_run_made_of_it(run):
    assert torch.equal(probabilities(run), probabilities(run / "checkpoint-10"))
    assert not torch.equal(probabilities(run), probabilities(run / "checkpoint-5"))


@pytest.mark.portable
def test_resumed_run_is_the_unbroken_one(folder, run, tmp_path):
    again, more = tmp_path / "again", ("--lora", "--lora-dropout", "0.1")
    assert finetune(folder, again, *more, "--resume", str(run / "checkpoint-5")) == 0
    assert equal(weights(run), weights(again))
    left, right = (
        torch.load(one / "checkpoint-10" / "optimizer.pt", weights_only=True)["state"] for one in (run, again)
    )
    assert len(left) == len(weights(run))
    assert all(equal(left[place], right[place]) for place in left)
    assert not equal(weights(run / "checkpoint-5"), weights(run))


def test_other_adapters_are_another_run(folder, run, tmp_path, capsys):
    resume = ("--resume", str(run / "checkpoint-5"))
    assert finetune(folder, tmp_path / "again", "--lora", "--lora-dropout", "0.1", "--lora-r", "4", *resume) == 2
    assert "lora.r: 8 -> 4" in capsys.readouterr().err


@pytest.mark.portable
def test_best_adapter_is_kept(folder, tmp_path):
    """Texts that all have the label that training sees least are understood worse with every step."""
    run, data, other = tmp_path / "run", tmp_path / "data.csv", tmp_path / "other.csv"
    data.write_text("text,label\n" + "hello world,yes\n" * 38 + "hello world,no\n" * 2, encoding="utf-8")
    other.write_text("text,label\n" + "hello world,no\n" * 4, encoding="utf-8")
    best = ("--best", "log_loss", "--eval-steps", "1", "--validation", str(other))
    assert finetune(folder, run, "--lora", *best, data=data) == 0
    assert json.loads((run / "run.json").read_text())["best"]["step"] == 1
    assert equal(weights(run), weights(run / "checkpoint-1"))
    assert not equal(weights(run), weights(run / "checkpoint-10"))


@pytest.mark.portable
def test_merged_model_is_a_plain_one_of_the_same_answers(run, tmp_path, capsys):
    merged = tmp_path / "merged"
    assert main(["export", str(run), "--output-dir", str(merged), "--merge"]) == 0
    assert capsys.readouterr().out == f"{merged}\n"
    files = {path.name for path in merged.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    torch.testing.assert_close(probabilities(merged), probabilities(run), rtol=0, atol=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(merged)
    assert model.config.id2label == {0: "maybe", 1: "no", 2: "yes"}
    assert not any("lora" in name for name in model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert main(["export", str(merged), "--output-dir", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    halves = load_file(tmp_path / "half" / "model.safetensors")
    assert {weight.dtype for weight in halves.values()} == {torch.bfloat16}
    assert torch.equal(halves["classifier.weight"], model.classifier.weight.to(torch.bfloat16))


def test_logits_are_the_same_within_the_rounding_of_the_largest():
    before = torch.tensor([[38.7, 0.001]])
    require_same(before, before + 9e-4, "the model", 1e-4)
    with pytest.raises(ModelError, match=r"the model: logits differ by 0.009"):
        require_same(before, before + 9e-3, "the model", 1e-4)
    with pytest.raises(ModelError, match="logits differ by nan"):
        require_same(before, before * torch.nan, "the model", 1e-4)


def test_export_of_a_run_is_its_model_alone(run, tmp_path):
    assert main(["export", str(run), "--output-dir", str(tmp_path / "adapter")]) == 0
    names = ["adapter_config.json", "adapter_model.safetensors", "model_config.json"]
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        *names,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert equal(weights(tmp_path / "adapter"), weights(run))
    assert torch.equal(probabilities(tmp_path / "adapter"), probabilities(run))


def test_what_export_refuses(folder, run, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    for arguments, message in (
        ([str(folder / "bert"), "--merge", "--output-dir", str(tmp_path / "new")], "has no adapter to merge"),
        (
            [str(run), "--dtype", "bfloat16", "--output-dir", str(tmp_path / "new")],
            "--dtype has no effect on an adapter",
        ),
        ([str(run), "--output-dir", str(full)], "full: not empty"),
    ):
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.txt"]


def test_training_does_not_begin_with_an_adapter(folder, run, tmp_path, capsys):
    assert finetune(folder, tmp_path / "run", model=run.name) == 2
    assert f"fix: hfkit export {run} --merge --output-dir NEW" in capsys.readouterr().err


def test_base_that_has_moved(folder, tmp_path, capsys):
    for name in ("bert", "run"):
        shutil.copytree(folder / name, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint-*"))
    settings = tmp_path / "run" / "adapter_config.json"
    settings.write_text(settings.read_text().replace(str(folder / "bert"), str(tmp_path / "gone")))
    assert main(["predict", str(tmp_path / "run"), "--text", "fox"]) == 5
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"run is an adapter to {tmp_path / 'gone'}, which can't be read" in error
    assert f"name its new place in {settings}" in error
    settings.write_text(settings.read_text().replace(str(tmp_path / "gone"), str(tmp_path / "bert")))
    assert torch.equal(probabilities(tmp_path / "run"), probabilities(folder / "run"))


def test_adapter_that_would_answer_otherwise_is_not_saved(run, tmp_path):
    """The base in memory is no longer that on the disk."""
    config = AutoConfig.from_pretrained(run / "model_config.json")
    model = AutoModelForSequenceClassification.from_pretrained(run, config=config)
    tokenizer, base = AutoTokenizer.from_pretrained(run), (str(run.parent / "bert"), None)
    export(tmp_path, model, tokenizer, base)
    assert equal(weights(tmp_path), weights(run))
    before = contents(tmp_path)
    model.bert.encoder.layer[0].output.dense.base_layer.weight.data *= 2
    with pytest.raises(ModelError, match="does not read back: logits differ by"):
        export(tmp_path, model, tokenizer, base)
    assert contents(tmp_path) == before


def test_damaged_adapter(run, tmp_path, capsys):
    bad = shutil.copytree(run, tmp_path / "bad", ignore=shutil.ignore_patterns("checkpoint-*"))
    kept = weights(run)
    kept.pop("base_model.model.classifier.bias")
    save_file(kept, bad / "adapter_model.safetensors", {"format": "pt"})
    assert main(["predict", str(bad), "--text", "fox"]) == 5
    assert "classifier.bias" in capsys.readouterr().err
    (bad / "adapter_model.safetensors").unlink()
    (bad / "adapter_model.bin").write_bytes(b"pickle")
    assert main(["predict", str(bad), "--text", "fox"]) == 5
    assert "no config.json" in capsys.readouterr().err


def test_plain_run_over_adapters_and_back(folder, tmp_path):
    run = tmp_path / "run"
    for more, gone, there in (
        (["--lora"], "model.safetensors", "adapter_config.json"),
        (["--overwrite"], "adapter_config.json", "config.json"),
        (["--overwrite", "--lora"], "config.json", "adapter_config.json"),
    ):
        assert finetune(folder, run, *more) == 0
        assert (run / there).exists()
        assert not (run / gone).exists()
        assert probabilities(run).shape == (3, 3)


def test_new_head_that_is_tied_to_the_embeddings(folder, run, tmp_path, capsys):
    assert main(["export", str(run), "--merge", "--output-dir", str(tmp_path / "merged")]) == 0
    learn = ["pretrain", "--objective", "mlm", "--lora", "--model", str(tmp_path / "merged"), "--block-size", "16"]
    assert main([*learn, "--data", str(folder / "text.txt"), "--output-dir", str(tmp_path / "run")]) == 2
    assert "cls.predictions is new, and shares its weights with the embeddings" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.portable
def test_decoders(kind, folder, tmp_path, capsys):
    run, merged = tmp_path / "run", tmp_path / "merged"
    learn = ["pretrain", "--model", str(folder / kind), "--data", str(folder / "text.txt"), "--block-size", "16"]
    learn += ["--max-steps", "6", "--lr", "0.05", "--no-interval", "--output-dir", str(run)]
    assert main([*learn, "--lora"]) == 0
    assert main(["export", str(run), "--output-dir", str(merged), "--merge"]) == 0
    first, second, before = (
        AutoModelForCausalLM.from_pretrained(one).eval()(torch.arange(1, 9)[None]).logits
        for one in (run, merged, folder / kind)
    )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    assert (first - before).abs().max() > 0.01
    capsys.readouterr()
    texts = []
    for one in (run, merged):
        assert main(["generate", "--model", str(one), "--prompt", "w1 w2", "--greedy", "--max-new-tokens", "5"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.portable
def test_classifying_decoder(folder, tmp_path):
    run, merged = tmp_path / "run", tmp_path / "merged"
    assert finetune(folder, run, "--lora", model="gpt2") == 0
    assert "base_model.model.score.weight" in weights(run)
    assert main(["export", str(run), "--output-dir", str(merged), "--merge"]) == 0
    torch.testing.assert_close(probabilities(run), probabilities(merged), rtol=0, atol=1e-5)


def test_base_from_the_hub_is_named_with_its_commit(folder, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with StandInHub() as hub:
        hub.add("someone/bert", folder / "bert")
        env = hub.env(tmp_path)
        learn = ["finetune", "--model", "someone/bert", "--data", str(folder / "rows.csv"), "--lora"]
        learn += ["--max-steps", "2", "--output-dir", "run", "--no-interval"]
        read = ["predict", "run", "--text", "fox"]
        (first, _, said), (second, _, _) = say(env, work, learn, read)
        assert (first, second) == (0, 0), said
    settings = json.loads((work / "run" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "someone/bert"
    assert len(settings["revision"]) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "--lora-targets", "qury"], "no layers named qury that take one (fix: did you mean 'query'?)"),
        (["--lora", "--freeze", "embeddings"], "--freeze: has no effect with lora.enabled"),
        (["--lora-r", "4"], "--lora-r: has no effect without lora.enabled"),
        (["--lora", "--from-scratch"], "--lora keeps trained weights, and this model begins with fresh ones"),
        (["--freeze", "embedding"], "'embedding' is neither embeddings nor layers:N (fix: did you mean 'embeddings'?)"),
        (["--freeze", "layers:0"], "'layers:0' is neither embeddings nor layers:N"),
        (["--freeze", "layers:3"], "layers:3, but the model has 2 layers (fix: --freeze layers:2 or fewer)"),
    ],
    ids=" ".join,
)
def test_what_can_not_act(options, message, folder, tmp_path, capsys):
    assert finetune(folder, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


FROZEN = {
    "bert": ("bert.embeddings.", "bert.encoder.layer.0."),
    "gpt2": ("transformer.wte.", "transformer.wpe.", "transformer.h.0."),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_weights_stay(kind, folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert finetune(folder, run, "--freeze", "embeddings,layers:1", model=kind) == 0
    before, after = (load_file(one / "model.safetensors") for one in (folder / kind, run))
    frozen = {name for name in after if name.startswith(FROZEN[kind])}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    body = {name for name in after if name in before} - frozen
    assert body
    assert not any(torch.equal(before[name], after[name]) for name in body)
    count, total = (sum(after[name].numel() for name in names) for names in (frozen, after))
    assert f"frozen: embeddings, layers:1: {count:,} of {total:,} parameters" in capsys.readouterr().err
