"""The comparison of whole commands runs to its end, here with tiny models and without the example scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"

# In place of an example script: it writes what the comparison reads of one.
EXAMPLE = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
if words[0].endswith(".json"):
    run = Path(json.loads(Path(words[0]).read_text())["output_dir"])
else:
    run = Path(words[words.index("--output_dir") + 1])
run.mkdir()
(run / "trainer_state.json").write_text(json.dumps({"num_input_tokens_seen": 100}))
(run / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.5}))
"""


@pytest.mark.soak
def test_the_comparison_of_whole_commands_still_runs(tmp_path):
    for name in ("run_clm.py", "run_mlm.py", "run_glue.py"):
        (tmp_path / name).write_text(EXAMPLE)
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--peers", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped: causal, nanoGPT, eager: needs nanoGPT/train.py in --peers" in done.stderr
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    results = {(work.split(",")[0], peer): result for work, peer, *_, result, _ in table[2:]}
    expected = {
        ("causal LM from scratch", "run_clm.py"): "-",
        ("masked LM from scratch", "run_mlm.py --line_by_line"): "-",
        ("a .txt file of 0.2 MB to the first step", "run_clm.py"): "-",
        ("one prompt", "pipeline"): "same text",
        ("one text to a label", "pipeline"): "same label",
    }
    assert {key: results[key] for key in expected} == expected
    assert results["SST-2", "run_glue.py, group_by_length"].endswith("and 0.500 accuracy")
    assert results["labels of 60 rows", "pipeline"].startswith("60 of 60 labels equal")
    for metric, peer in (("ROUGE", "rouge_score"), ("BLEU", "sacrebleu")):
        apart = results[f"{metric} of 60 pairs", peer].split()[1]
        assert float(apart) < 1e-5, (metric, peer)
