"""The library's own server takes a run directory as it is and answers as `hfkit generate` does."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from hfkit.cli.main import main
from tiny_models import TEXT, make_gpt2

TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant]"
MISSING = [name for name in ("fastapi", "openai", "uvicorn") if importlib.util.find_spec(name) is None]
SECONDS = 120  # in which it starts, or never

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(MISSING), reason=f"the serve extra is not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that hfkit trained, with a chat template."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "text.txt").write_text("\n".join(TEXT * 20))
    model = make_gpt2(folder / "gpt2")
    line = ["pretrain", "--model", str(model), "--data", str(folder / "text.txt"), "--block-size", "16"]
    assert main([*line, "--max-steps", "2", "--output-dir", str(folder / "run")]) == 0
    (folder / "run" / "chat_template.jinja").write_text(TEMPLATE)
    return folder / "run"


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(run), "--device", "cpu"]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        end = time.monotonic() + SECONDS
        while not answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(url, **body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return json.load(response)


def test_server_continues_a_prompt_and_answers_a_message_as_hfkit_does(run, address, capsys):
    line = ["generate", str(run), "--prompt", "the quick", "--max-new-tokens", "8"]
    assert main([*line, "--raw"]) == 0
    continued = capsys.readouterr().out.removesuffix("\n")
    body = {"model": str(run), "max_tokens": 8}
    answer = ask(f"{address}/v1/completions", prompt="the quick", **body)
    assert answer["choices"][0]["text"] == continued
    assert answer["usage"]["completion_tokens"] == 8
    assert main(line) == 0
    answered = capsys.readouterr().out.removesuffix("\n")
    messages = [{"role": "user", "content": "the quick"}]
    answer = ask(f"{address}/v1/chat/completions", messages=messages, **body)
    assert answer["choices"][0]["message"]["content"] == answered
    assert answered != continued
