"""The prompts that ship: what they are, and that nobody changes one without raising its version."""

import subprocess
import sys
from pathlib import Path

import pytest

import llmrec_plugin
from llmrec_plugin import Prompt, Slot
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.prompts import load_prompt
from llmrec_plugin.systems.instructions import told
from llmrec_plugin.systems.kar import KNOWLEDGE_ENCODER

SYSTEMS = Path(llmrec_plugin.__file__).parent / "systems"
FINGERPRINTS = {
    "genre/synthetic_item": (1, "de950d296a91"),
    "genre/synthetic_item_chained": (1, "de3a8b1c2e6e"),
    "genre/title_rewrite": (1, "7afb5aeb4d17"),
    "genre/user_regions": (1, "8ff937721d63"),
    "genre/user_topics": (1, "b5a0182b59e4"),
    "kar/item_facts": (1, "bac537f058c4"),
    "kar/user_preferences": (1, "74bb3707da28"),
    "llm_scorer/conversational_query": (1, "cc973e5b1e34"),
    "llm_scorer/listwise": (1, "0ea2c9fc9f96"),
    "llm_scorer/listwise_lines": (1, "39ab3ee3b30c"),
    "llm_scorer/pointwise": (1, "1e439df98c0b"),
    "mint/query_likelihood": (1, "4a31d392e730"),
    "mint/user_request": (1, "b0fa28d7db91"),
}


def shipped():
    return {
        f"{path.parents[1].name}/{path.stem}": load_prompt(
            f"package:llmrec_plugin.systems.{path.parents[1].name}/prompts/{path.name}"
        )
        for path in sorted(SYSTEMS.glob("*/prompts/*.md"))
    }


def test_a_prompt_that_changed_has_a_new_version():
    """Stored values name the version. If this fails, raise the prompt's version and write its new line down here."""
    assert {name: (prompt.version, prompt.fingerprint[:12]) for name, prompt in shipped().items()} == FINGERPRINTS


def test_prompts_are_called_after_their_system_and_file():
    assert {name: prompt.name for name, prompt in shipped().items()} == {
        name: name.replace("/", "-").replace("_", "-") for name in FINGERPRINTS
    }


def test_what_all_rows_share_comes_first():
    for name, prompt in shipped().items():
        last = prompt.user.rindex("}}")
        assert len(prompt.user) - last < 60, name  # instructions behind the data would be read anew for each row


PROMPT = Prompt(name="p", version=1, user="{{title}}", slots=(Slot(name="title"),))


def test_options_are_told_at_the_end_of_the_system_text_and_change_the_fingerprint():
    prompt = told(
        Prompt(name="p", version=1, user="{{title}}", system="Choose.\n", slots=PROMPT.slots), "Topics", ["a", "b c"]
    )
    assert prompt.system == "Choose.\nTopics: a; b c"
    assert told(PROMPT, "Topics", ["a"]).system == "Topics: a"
    assert len({told(PROMPT, "Topics", topics).fingerprint for topics in (["a"], ["b"], ["a", "b"], ["b", "a"])}) == 4


@pytest.mark.parametrize("choices", [[], [""], [" "], ["a", "a"], ["a\nb"], ["{{title}}"], ["a; b"], [3], "abc"])
def test_options_that_could_be_misread_are_refused(choices):
    with pytest.raises(DeclarationError, match="prompt 'p': topics must be distinct strings"):
        told(PROMPT, "Topics", choices)


def test_the_plugins_register_what_they_say():
    from llmrec_plugin.systems import genre, kar, llm_scorer, mint

    assert kar.llmrec_register_models() == [KNOWLEDGE_ENCODER]
    assert genre.llmrec_register_features() == mint.llmrec_register_features() == []
    assert llm_scorer.llmrec_register_features() == []


def test_importing_the_plugins_loads_nothing_heavy():
    heavy = {"feast", "torch", "transformers", "onnxruntime", "pandas", "numpy"}
    systems = "genre kar llm_scorer llm_scorer.commands mint.training task_encoder task_encoder.commands".split()
    code = f"import sys, {', '.join(f'llmrec_plugin.systems.{system}' for system in systems)}\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}print(sorted({heavy} & set(sys.modules)))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
