"""The launcher configurations that come with hfkit say to accelerate, and to a shell, what their comments say."""

import os
import re
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType

from hfkit.cli.main import main
from hfkit.recipe.shipped import recipes_folder, shipped_recipes

CONFIGS = {path.stem: path for path in sorted((recipes_folder() / "accelerate").glob("*.yaml"))}
JOBS = sorted((recipes_folder() / "slurm").glob("*.sbatch"))


def typed(path: Path) -> list[str]:
    """The words after `accelerate launch` on a configuration's line "Run"."""
    (line,) = re.findall("^# Run: accelerate launch (.*?)(?:  #.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [str(path) if word == path.name else word for word in shlex.split(line)]


def launched(path: Path) -> Namespace:
    """What accelerate makes of that line."""
    parsed = launch_command_parser().parse_args(typed(path))
    return _validate_launch_command(parsed)[0]


def test_there_is_one_for_each_engine() -> None:
    assert list(CONFIGS) == ["ddp", "fsdp2", "multi-node", "zero3"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_one_that_accelerate_knows(name: str) -> None:
    config = load_config_from_file(str(CONFIGS[name]))  # refuses unknown keys at the top
    assert isinstance(config, ClusterConfig)
    known = vars(launch_command_parser().parse_args(["-m", "hfkit"]))
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert [key for key in nested if key not in known] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_comments_say_what_it_is_for_and_how_to_run_it(name: str) -> None:
    comments = [line for line in CONFIGS[name].read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert len(comments) == 3
    assert len(comments[0]) > 60
    assert comments[2].startswith("# Worth trying: ")
    arguments = launched(CONFIGS[name])
    assert (arguments.module, arguments.training_script) == (True, "hfkit")
    assert main([*arguments.training_script_args, "--help"]) == 0


@pytest.mark.parametrize(
    ("name", "engine", "processes", "machines"),
    [
        ("ddp", "multi_gpu", 8, 1),
        ("fsdp2", "use_fsdp", 8, 1),
        ("zero3", "use_deepspeed", 8, 1),
        ("multi-node", "multi_gpu", 32, 4),
    ],
)
def test_launcher_takes_the_engine_and_the_numbers(name: str, engine: str, processes: int, machines: int) -> None:
    arguments = launched(CONFIGS[name])
    engines = [kind for kind in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, kind)]
    assert engines == [engine]
    assert (arguments.num_processes, arguments.num_machines) == (processes, machines)
    assert arguments.mixed_precision == "no"


def test_fsdp2_reaches_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in prepare_multi_gpu_env(launched(CONFIGS["fsdp2"])).items():
        monkeypatch.setenv(key, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.auto_wrap_policy is not None
    assert (plugin.cpu_ram_efficient_loading, plugin.activation_checkpointing) == (False, False)


def test_zero3_leaves_batch_and_clipping_to_the_recipe() -> None:
    arguments = launched(CONFIGS["zero3"])
    assert (arguments.zero_stage, arguments.zero3_save_16bit_model) == (3, True)
    assert (arguments.gradient_accumulation_steps, arguments.gradient_clipping) == ("auto", "auto")


def test_every_machine_is_told_where_the_first_is() -> None:
    ranks = prepare_multi_gpu_env(launched(CONFIGS["multi-node"]))
    assert ranks["ACCELERATE_MIXED_PRECISION"] == "no"
    arguments = launched(CONFIGS["multi-node"])
    assert (arguments.machine_rank, arguments.main_process_ip, arguments.main_process_port) == (0, "10.0.0.1", 29500)


def test_they_are_no_recipes_of_hfkit(capsys: pytest.CaptureFixture[str]) -> None:
    assert not set(CONFIGS) & set(shipped_recipes())
    assert main(["recipes", "list"]) == 0
    assert "accelerate" not in capsys.readouterr().out


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_is_a_script_that_hfkit_and_its_shell_can_read(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subprocess.run(["bash", "-n", str(job)], check=False).returncode == 0
    text = job.read_text(encoding="utf-8")
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=\S+)?$", text, re.MULTILINE)
    assert len(options) == text.count("#SBATCH")
    assert {"requeue", "signal", "time"} <= {*options}
    assert "--signal=TERM@" in text  # without B: the signal is for the program, not for the shell
    assert '"$code" -eq 143' in text  # hfkit's exit code after SIGTERM
    (line,) = re.findall(r"^srun hfkit ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    words = shlex.split(line.replace("\\\n", " ").replace("$HOME", str(Path(__file__).parents[1])))
    assert words[-2:] == ["--resume", "auto"]
    words[words.index("--data") + 1] = __file__  # a text that is there
    assert main([*words, "--dry-run"]) == 0
