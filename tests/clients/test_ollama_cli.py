"""Ollama's own command line against a node, by OLLAMA_HOST, over each kind of backend."""

import json
import re
import time

import pytest

import servers
from conftest import or_skip

pytestmark = pytest.mark.others
where_models_are_known = pytest.mark.only_over("embedded", "peer", "ollama")
# Naming them, and knowing all about them, is up to the node that has them.
where_models_are_named = pytest.mark.only_over("embedded", "ollama", "llama-server")
# Taking weights in, and out of memory, is more than a server of OpenAI's dialect lets anybody do.
where_weights_are_managed = pytest.mark.only_over("embedded", "ollama")
WAIT_LIMIT_S = 20


@pytest.fixture
def cli(served, tmp_path):
    """Runs a command against the node and returns what it printed."""
    or_skip(servers.ollama_program)

    def run(*arguments, **options):
        return servers.run_ollama(served.api, tmp_path, *arguments, **options).stdout

    return run


@pytest.fixture
def fails(served, tmp_path):
    """Runs a command that has to fail and returns what it complained of."""
    or_skip(servers.ollama_program)

    def run(*arguments, **options):
        done = servers.run_ollama(served.api, tmp_path, *arguments, check=False, **options)
        assert done.returncode != 0, f"{arguments} should have failed, and printed {done.stdout}"
        return done.stderr

    return run


@pytest.fixture
def talker(served, cli, model, tmp_path):
    """The name of a model that ends its answers soon: the command line has no option for that, and the small model can go on for ever."""
    modelfile = tmp_path / "Modelfile-talker"
    modelfile.write_text(f"FROM {model}\nPARAMETER num_predict 48\nPARAMETER temperature 0\n")
    servers.run_ollama(served.manager_api, tmp_path, "create", "talker", "-f", modelfile)
    deadline = time.monotonic() + WAIT_LIMIT_S
    while "talker:latest" not in table(cli("list")):
        assert time.monotonic() < deadline, "the model does not show where it is asked for"
        time.sleep(0.05)
    yield "talker"
    servers.run_ollama(served.manager_api, tmp_path, "rm", "talker")


def table(text):
    """Reads a table of the command line: a row is found by its first cell."""
    head, *rows = [re.split(r"\s{2,}|\t+", line.strip()) for line in text.strip().splitlines()]
    return {row[0]: dict(zip(head, row)) for row in rows}


def test_it_knows_whom_it_talks_to(cli):
    assert "could not connect" not in cli("--version")


def test_list(cli, model, embedder, served):
    listed = table(cli("list"))
    assert {model, f"{embedder}:latest"} <= set(listed)
    assert re.fullmatch(r"[0-9a-f]{12}", listed[model]["ID"])
    if not served.is_openai_behind:
        assert listed[model]["SIZE"] == "98 MB"
        assert listed[model]["MODIFIED"].endswith("ago")


def test_run_answers_a_prompt(cli, talker):
    assert cli("run", talker, "Name three things that bees do.").strip()


def test_run_reads_its_prompt_from_a_pipe(cli, talker):
    assert cli("run", talker, input="Say hello.\n").strip()


def test_run_tells_how_fast_it_was(served, tmp_path, talker):
    done = servers.run_ollama(served.api, tmp_path, "run", "--verbose", talker, "Say hello.")
    told = dict(re.findall(r"((?:prompt )?eval (?:count|duration|rate)|(?:total|load) duration):\s+(.+)$", done.stderr, re.MULTILINE))
    assert float(told["eval rate"].split()[0]) > 0
    assert int(told["prompt eval count"].split()[0]) > 5
    assert {"total duration", "eval count", "eval duration", "prompt eval duration", "prompt eval rate"} <= set(told)


def test_run_gives_json_when_asked(cli, talker):
    assert cli("run", "--format", "json", talker, "Describe a bee as a very small JSON object.").lstrip().startswith("{")


@where_models_are_known
def test_run_embeds_with_a_model_for_that(cli, embedder):
    assert len(json.loads(cli("run", embedder, "the bee"))) == 64


def test_run_with_an_unknown_model_says_so(fails):
    """The command line tries to pull what is unknown, which fails without a network or without such a model."""
    assert "Error" in fails("run", "no-such-model-anywhere:1b", "hello")


@where_weights_are_managed
def test_show(cli, model):
    shown = cli("show", model)
    facts = dict(re.findall(r"^\s+(architecture|parameters|context length|embedding length|quantization)\s+(\S.*?)\s*$", shown, re.MULTILINE))
    assert facts == {"architecture": "llama", "parameters": "134.52M", "context length": "8192", "embedding length": "576", "quantization": "Q4_1"}
    assert "completion" in shown


@where_models_are_named
def test_show_prints_each_part(cli, model):
    assert "<|im_start|>" in cli("show", "--template", model)
    modelfile = cli("show", "--modelfile", model)
    assert "FROM " in modelfile and "TEMPLATE" in modelfile


def test_show_over_names_alone_still_shows(cli, model):
    assert "completion" in cli("show", model)


def test_show_of_nothing_is_an_error(fails):
    assert "not found" in fails("show", "nope")


@where_weights_are_managed
def test_ps_and_stop(cli, talker):
    cli("run", "--keepalive", "10m", talker, "Say hello.")
    running = table(cli("ps"))[f"{talker}:latest"]
    assert running["UNTIL"].endswith("from now")
    assert int(running["CONTEXT"]) > 0 and running["PROCESSOR"] == "100% CPU"
    cli("stop", talker)
    deadline = time.monotonic() + WAIT_LIMIT_S
    while talker in cli("ps"):
        assert time.monotonic() < deadline, "the model is still in memory"


@pytest.mark.only_over("llama-server")
def test_ps_and_stop_over_a_server_that_keeps_its_model(cli, talker):
    """Nobody but llama-server itself takes its model out of memory: it is seen there for ever, and stopping it succeeds all the same."""
    cli("run", talker, "Say hello.")
    running = table(cli("ps"))["a-name-of-its-own:latest"]
    assert running["UNTIL"] == "Forever"
    assert int(running["CONTEXT"]) > 0 and running["SIZE"].split()[0] != "0"
    cli("stop", talker)
    assert "a-name-of-its-own:latest" in table(cli("ps"))
    assert cli("run", talker, "Say hello.").strip()


@where_models_are_named
def test_stop_of_nothing_is_an_error(fails):
    assert "couldn't find model" in fails("stop", "nope")


def test_ps_is_a_table_even_if_nothing_runs(cli):
    assert cli("ps").split()[:3] == ["NAME", "ID", "SIZE"]


@where_models_are_named
def test_cp_and_rm(cli, fails, talker):
    assert "copied" in cli("cp", talker, "a-copy")
    assert "a-copy:latest" in table(cli("list"))
    assert cli("run", "a-copy", "Say hello.").strip()
    assert "deleted" in cli("rm", "a-copy")
    assert "a-copy:latest" not in table(cli("list"))
    assert "not found" in fails("rm", "a-copy")
    assert "not found" in fails("cp", "nope", "something")


@where_models_are_named
def test_create_of_another_model(cli, model, tmp_path):
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f'FROM {model}\nSYSTEM You keep bees.\nPARAMETER temperature 0\nPARAMETER num_predict 3\nMESSAGE user Hi\nMESSAGE assistant Bzz\n')
    cli("create", "beekeeper", "-f", modelfile)
    try:
        assert "You keep bees." in cli("show", "--system", "beekeeper")
        assert re.search(r"num_predict\s+3", cli("show", "--parameters", "beekeeper"))
        assert cli("run", "beekeeper", "Name three things that bees do.").strip()
    finally:
        cli("rm", "beekeeper")


@where_weights_are_managed
def test_create_of_a_file(cli, model_file, tmp_path):
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f'FROM {model_file}\nTEMPLATE """{{{{ .Prompt }}}}"""\nPARAMETER temperature 0\nPARAMETER num_predict 4\nLICENSE Apache-2.0\n')
    cli("create", "made-of-a-file", "-f", modelfile)
    try:
        assert cli("show", "--template", "made-of-a-file").strip() == "{{ .Prompt }}"
        assert "Apache-2.0" in cli("show", "--license", "made-of-a-file")
        assert cli("run", "made-of-a-file", "One, two, three,").strip()
    finally:
        cli("rm", "made-of-a-file")


@where_models_are_named
def test_create_of_nothing_is_an_error(fails, tmp_path):
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text("FROM no-such-model-anywhere:1b\n")
    assert "Error" in fails("create", "never", "-f", modelfile)


@where_models_are_named
def test_create_of_a_model_that_was_made_adds_to_it(cli, talker, tmp_path):
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {talker}\nSYSTEM You keep bees.\n")
    cli("create", "beekeeper-of-few-words", "-f", modelfile)
    try:
        assert re.search(r"num_predict\s+48", cli("show", "--parameters", "beekeeper-of-few-words"))
        assert "You keep bees." in cli("show", "--system", "beekeeper-of-few-words")
        assert cli("run", "beekeeper-of-few-words", "Say hello.").strip()
    finally:
        cli("rm", "beekeeper-of-few-words")


@pytest.mark.only_over("llama-server")
def test_what_is_up_to_the_server_behind_is_refused(cli, fails, model, embedder_file, tmp_path):
    assert "is an alias of" in fails("rm", model)
    assert "belongs to the server" in fails("rm", "a-name-of-its-own")
    assert model in table(cli("list"))
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {embedder_file}\n")
    assert "Error" in fails("create", "never", "-f", modelfile)
    modelfile.write_text(f'FROM {model}\nTEMPLATE """{{{{ .Prompt }}}}"""\n')
    assert "keep their template" in fails("create", "never", "-f", modelfile)
    assert "never:latest" not in table(cli("list"))


def test_pull_of_nothing_is_an_error(fails):
    assert "Error" in fails("pull", "no-such-model-anywhere:1b")


def test_a_conversation_by_terminal_keeps_its_turns(served, tmp_path, talker):
    """The interactive prompt loads the model first, then sends the whole conversation with each turn."""
    shown = servers.converse(served.api, tmp_path, ["run", talker], ["My name is Hildegard.", "What is my name?", "/bye"])
    assert "Error" not in shown
    assert shown.count(">>>") >= 3
