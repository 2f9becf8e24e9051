"""Models and tokenizers: built new, opened from a directory, refused with one clear message."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from hfkit import settings
from hfkit.cli.main import main
from hfkit.errors import ModelError, UsageError
from hfkit.models.config import describe, load_config, max_tokens
from hfkit.models.loading import new_or_pretrained
from hfkit.models.new_tokenizer import train_tokenizer
from hfkit.models.tokenizer import load_tokenizer
from hfkit.tasks import TASKS
from tiny_models import make_bert, make_causal_model, make_gpt2, make_word_tokenizer

CORPUS = ["The quick brown fox jumps over the lazy dog, again and again. " * 20, "你好，世界！ Two\n lines 😀 " * 20]


def recipe_for(task="clm", *, name=None, dropout=None, block_size=32, **model):
    model = {"from_scratch": True, "size": "tiny"} | model if name is None else {"name": str(name)} | model
    return settings.Recipe(
        task=task,
        model=settings.Model(**model),
        data=settings.Data(block_size=block_size),
        train=settings.Train(dropout=dropout),
    )


def config_of(recipe):
    options = {"block_size": recipe.data.block_size, "dropout": recipe.train.dropout}
    return load_config(recipe.model, auto_model=TASKS[recipe.task].auto_model, **options)


def tokenizer_of(recipe):
    return load_tokenizer(recipe.tokenizer, recipe.model)


def new_model(model_type, task, vocab_size=300, **model):
    recipe = recipe_for(task, type=model_type, **model)
    config = config_of(recipe)
    tokenizer = train_tokenizer(CORPUS, model_type, vocab_size)
    return new_or_pretrained(TASKS[task].auto_model, recipe.model, config, tokenizer, recipe), tokenizer


def opened(directory, auto_model, **model):
    recipe = recipe_for(name=directory, **model)
    config = config_of(recipe)
    return new_or_pretrained(auto_model, recipe.model, config, tokenizer_of(recipe), recipe)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return make_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.mark.parametrize(
    ("model_type", "task", "size", "shape"),
    [
        ("gpt2", "clm", "tiny", (128, 2, 2, 512)),
        ("gpt2", "clm", "mini", (256, 4, 4, 1024)),
        ("llama", "clm", "tiny", (128, 2, 2, 512)),
        ("qwen3", "clm", "tiny", (128, 2, 2, 512)),
        ("bert", "mlm", "tiny", (128, 2, 2, 512)),
        ("roberta", "mlm", "tiny", (128, 2, 2, 512)),
        ("modernbert", "mlm", "tiny", (128, 2, 2, 512)),
    ],
)
def test_type_and_size_give_the_shape(model_type, task, size, shape):
    model, _ = new_model(model_type, task, size=size)
    config = model.config
    inner = getattr(config, "intermediate_size", None) or config.n_inner or 4 * config.hidden_size
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, inner) == shape
    assert max_tokens(model) == (33 if model_type == "roberta" else 32)  # two positions spare, as for a pad id of 1
    ids = torch.arange(32).unsqueeze(0) + 5
    assert model(input_ids=ids).logits.shape == (1, 32, config.vocab_size)


def test_model_config_goes_before_size_and_its_own_names_work():
    recipe = recipe_for(type="gpt2", config={"n_layer": 3, "hidden_size": 64, "n_positions": 99})
    config = config_of(recipe)
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions) == (3, 64, 2, 99)
    llama = config_of(recipe_for(type="llama", config={"num_attention_heads": 4}))
    assert (llama.num_attention_heads, llama.num_key_value_heads, llama.intermediate_size) == (4, 4, 512)


def test_a_type_without_such_a_size_keeps_its_own():
    config = config_of(recipe_for(type="mamba", block_size=None))
    assert (config.hidden_size, config.num_hidden_layers) == (128, 2)


@pytest.mark.portable
def test_gpt2_computes_the_same_function_faster(gpt2):
    fast = [config_of(recipe_for(type="gpt2")), config_of(recipe_for(name=gpt2))]
    assert [config.activation_function for config in fast] == ["gelu_pytorch_tanh"] * 2
    ids = torch.arange(20)[None]
    stock = AutoModelForCausalLM.from_pretrained(gpt2)
    assert stock.config.activation_function == "gelu_new"
    own = AutoModelForCausalLM.from_pretrained(gpt2, config=fast[1])
    torch.testing.assert_close(own(ids).logits, stock(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"type": "lama"}, r"model\.type 'lama' is unknown \(fix: did you mean 'llama'\?\)"),
        ({"type": "vit"}, "vit models have no CausalLM head"),
        ({"type": "t5"}, "t5 models have no CausalLM head"),
        ({"type": "gpt2", "config": {"n_layerz": 3}}, r"model\.config\.n_layerz: .*did you mean 'n_layer'\?"),
        ({"type": "gpt2", "config": {"n_layer": "many"}}, "gpt2 can't be built: "),
    ],
)
def test_unknown_types_and_keys_are_named(model, message):
    with pytest.raises(UsageError, match=message):
        config_of(recipe_for(**model))


def test_all_unknown_keys_are_named_at_once(gpt2):
    for model in ({"type": "gpt2"}, {"name": gpt2}):
        with pytest.raises(UsageError) as error:
            config_of(recipe_for(**model, config={"n_layerz": 3, "n_haed": 2}))
        assert len(error.value.problems) == 2


def test_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="bert can't be built: The hidden size"):
        new_model("bert", "mlm", config={"hidden_size": 50, "num_attention_heads": 4})


def test_models_that_read_both_ways_do_not_learn_clm():
    for model_type in ("bert", "roberta", "electra"):
        with pytest.raises(UsageError, match=f"{model_type} reads in both directions"):
            new_model(model_type, "clm")


@pytest.mark.parametrize(
    ("model_type", "task", "keys"),
    [
        ("gpt2", "clm", {"resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"}),
        ("llama", "clm", {"attention_dropout"}),
        ("bert", "mlm", {"hidden_dropout_prob", "attention_probs_dropout_prob"}),
        ("modernbert", "mlm", {"attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"}),
        ("opt", "clm", {"dropout", "attention_dropout"}),  # and not layerdrop, which leaves out whole layers
    ],
)
def test_dropout_reaches_every_key(model_type, task, keys):
    config = config_of(recipe_for(task, type=model_type, dropout=0.25))
    assert {key for key, value in vars(config).items() if value == 0.25} == keys


def test_dropout_reaches_every_module_of_a_pretrained_model(bert):
    recipe = recipe_for("text-classification", name=bert, dropout=0.25)
    config = config_of(recipe)
    model = new_or_pretrained("AutoModelForSequenceClassification", recipe.model, config, tokenizer_of(recipe), recipe)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.25}
    assert config_of(recipe_for(name=bert)).hidden_dropout_prob == 0.1


@pytest.mark.parametrize(("vocab_size", "rows"), [(310, 320), (320, 320), (321, 384)])
def test_new_vocabulary_is_padded_to_64(vocab_size, rows):
    tokenizer = make_word_tokenizer(vocab_size - 1)
    recipe = recipe_for(type="gpt2")
    model = new_or_pretrained("AutoModelForCausalLM", recipe.model, config_of(recipe), tokenizer, recipe)
    assert len(tokenizer) == vocab_size
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == rows


def test_new_model_takes_the_special_tokens_of_its_tokenizer():
    model, tokenizer = new_model("gpt2", "clm")
    ids = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == ids
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert", "roberta", "modernbert", "t5"])
def test_trained_tokenizer_opens_again_and_gives_the_text_back(model_type, tmp_path):
    tokenizer = train_tokenizer(CORPUS, model_type, 400)
    config = {"t5": T5Config, "llama": LlamaConfig, "bert": BertConfig, "gpt2": GPT2Config}.get(model_type)
    (config() if config else config_of(recipe_for("mlm", type=model_type))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["The lazy dog, again", "你好 😀", "two  spaces\nand a line"]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    back = [again.decode(ids, skip_special_tokens=True) for ids in again(texts)["input_ids"]]
    if model_type == "bert":  # lower-case, and blanks around every Chinese character
        assert back == ["the lazy dog, again", "你 好 😀", "two spaces and a line"]
    elif model_type == "t5":  # SentencePiece takes any run of blanks for one
        assert back == ["The lazy dog, again", "你好 😀", "two spaces and a line"]
    else:
        assert back == texts


def test_trained_tokenizer_has_what_its_model_type_needs():
    bert = train_tokenizer(CORPUS, "bert", 300)
    ids = bert("dog")["input_ids"]
    assert bert.convert_ids_to_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    roberta = train_tokenizer(CORPUS, "roberta", 300)
    for tokenizer in (bert, roberta):
        assert None not in (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    gpt2 = train_tokenizer(CORPUS, "gpt2", 300)
    assert len(gpt2) == 300
    assert gpt2.eos_token_id is not None
    assert gpt2("dog")["input_ids"][-1] != gpt2.eos_token_id


def test_pad_token_is_taken_from_the_special_ones(gpt2, bert):
    recipe = recipe_for(name=gpt2)
    tokenizer = tokenizer_of(recipe)
    assert tokenizer.pad_token == "<|endoftext|>"
    recipe = recipe_for(name=bert)
    assert tokenizer_of(recipe).pad_token == "[PAD]"


@pytest.mark.portable
def test_padding_does_not_reach_a_classifying_decoder(gpt2):
    model = opened(gpt2, "AutoModelForSequenceClassification").eval()
    tokenizer = AutoTokenizer.from_pretrained(gpt2, pad_token="<|endoftext|>", padding_side="left")
    examples = [tokenizer("hello world"), tokenizer("the quick brown fox jumps over the lazy dog")]
    task = TASKS["text-classification"]
    with torch.no_grad():
        alone = model(**task.collate(examples[:1], tokenizer)).logits[0]
        beside = model(**task.collate(examples, tokenizer)).logits[0]
    assert torch.allclose(alone, beside, atol=1e-6)
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_new_head_is_said_aloud(bert, gpt2, capsys):
    opened(bert, "AutoModelForSequenceClassification")
    assert (
        "new weights (the model was not trained for this yet): "
        "bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight"
    ) in capsys.readouterr().err
    opened(gpt2, "AutoModelForSequenceClassification")
    assert "(the model was not trained for this yet): score.weight" in capsys.readouterr().err
    opened(gpt2, "AutoModelForCausalLM")
    assert "new weights" not in capsys.readouterr().err


def test_new_head_is_an_error_outside_training(bert):
    recipe = recipe_for("text-classification", name=bert)
    config = config_of(recipe)
    tokenizer = tokenizer_of(recipe)
    with pytest.raises(ModelError, match=r"has no weights for .*classifier\.bias"):
        new_or_pretrained("AutoModelForSequenceClassification", recipe.model, config, tokenizer)


def test_body_and_head_keep_their_weights(bert, tmp_path):
    from safetensors.torch import load_file

    saved = load_file(bert / "model.safetensors")
    model = opened(bert, "AutoModelForMaskedLM")
    for name, tensor in model.state_dict().items():
        assert name not in saved or torch.equal(tensor, saved[name])
    classifier = opened(bert, "AutoModelForSequenceClassification")
    name = "bert.encoder.layer.1.attention.self.query.weight"
    assert torch.equal(classifier.state_dict()[name], saved[name])


def changed_weights(directory, target, change):
    """A copy of the model whose tensors went through `change`, a function on the dict of them."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(directory, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_missing_or_misshapen_weights_of_the_body_are_refused(gpt2, bert, tmp_path):
    lost = changed_weights(gpt2, tmp_path / "lost", lambda tensors: tensors.pop("transformer.h.1.ln_1.weight"))
    with pytest.raises(ModelError, match=r"lost: 1 weights are missing .* first 'transformer\.h\.1\.ln_1\.weight'"):
        opened(lost, "AutoModelForCausalLM")
    name = "bert.encoder.layer.0.output.dense.weight"
    bent = changed_weights(bert, tmp_path / "bent", lambda tensors: tensors.update({name: torch.zeros(3, 4)}))
    with pytest.raises(ModelError, match=r"bent: 1 weights .*'bert\.encoder\.layer\.0\.output\.dense\.weight'"):
        opened(bent, "AutoModelForMaskedLM")
    code = main(["generate", "--model", str(lost), "--prompt", "hello"])
    assert code == 5


def test_missing_weights_of_a_model_without_a_prefix_are_refused(tmp_path):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    tokenizer = train_tokenizer(CORPUS, "t5", 300)
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    opened(tmp_path / "t5", "AutoModelForSeq2SeqLM")
    name = "decoder.block.0.layer.1.EncDecAttention.q.weight"
    lost = changed_weights(tmp_path / "t5", tmp_path / "lost", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"first '{name}'"):
        opened(lost, "AutoModelForSeq2SeqLM")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),  # cut in half
        ("model.safetensors", b"\x00" * 100),
        ("config.json", b'{"model_type": "gpt2", '),
        ("config.json", b'{"model_type": "no-such-type"}'),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{"),
    ],
)
def test_damaged_file_is_one_message_that_names_the_model(gpt2, tmp_path, capsys, file, content):
    broken = shutil.copytree(gpt2, tmp_path / "broken")
    path = broken / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    code = main(["generate", "--model", str(broken), "--prompt", "hello"])
    err = capsys.readouterr().err
    assert code == 5
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {broken}: can't be read: ")


def test_directory_without_tokenizer_files_is_named(gpt2, tmp_path, capsys):
    bare = shutil.copytree(gpt2, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*"))
    assert main(["generate", "--model", str(bare), "--prompt", "hello"]) == 5
    assert str(bare) in capsys.readouterr().err


def test_tokenizer_larger_than_the_embeddings_is_a_usage_error(gpt2, tmp_path, capsys):
    large = shutil.copytree(gpt2, tmp_path / "large")
    tokenizer = AutoTokenizer.from_pretrained(large)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(9)])
    tokenizer.save_pretrained(large)
    assert main(["generate", "--model", str(large), "--prompt", "hello"]) == 2
    entries = len(tokenizer)
    assert f"the tokenizer has {entries} entries, the model only {entries - 9}" in capsys.readouterr().err


@pytest.mark.parametrize("model_type", ["gpt2", "homemade"])
def test_code_in_a_model_directory_never_runs(gpt2, tmp_path, capsys, model_type):
    evil, canary = shutil.copytree(gpt2, tmp_path / "evil"), tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\n"
    for module in ("modeling_canary", "configuration_canary", "tokenization_canary"):
        (evil / f"{module}.py").write_text(code + "class Canary: pass\n")
    config = json.loads((evil / "config.json").read_text())
    auto_map = {
        "AutoConfig": "configuration_canary.Canary",
        "AutoModelForCausalLM": "modeling_canary.Canary",
        "AutoTokenizer": ["tokenization_canary.Canary", "tokenization_canary.Canary"],
    }
    (evil / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": auto_map}))
    tokenizer = json.loads((evil / "tokenizer_config.json").read_text())
    (evil / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"auto_map": {"AutoTokenizer": auto_map["AutoTokenizer"]}})
    )
    exit_code = main(["generate", "--model", str(evil), "--prompt", "hello", "--max-new-tokens", "1"])
    assert exit_code == (0 if model_type == "gpt2" else 5), capsys.readouterr().err
    assert not canary.exists()


def test_description_counts_parameters_with_and_without_embeddings():
    model = make_causal_model(vocabulary=64)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert describe(model) == f"llama, {total:,} parameters ({total - 2 * 64 * 16:,} without embeddings)"
    tied, _ = new_model("gpt2", "clm")
    total = sum(parameter.numel() for parameter in tied.parameters())
    assert f"({total - tied.config.vocab_size * 128:,} without" in describe(tied)


def test_weights_are_loaded_in_the_wanted_type(gpt2):
    assert opened(gpt2, "AutoModelForCausalLM").dtype == torch.float32
    assert opened(gpt2, "AutoModelForCausalLM", dtype="bfloat16").dtype == torch.bfloat16
