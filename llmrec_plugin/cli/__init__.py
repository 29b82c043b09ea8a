"""The command line, one module per command or family; `main` imports the one that is used.

    llmrec plugins | features | models | new-plugin | check
           export | calibrate | data | train | evaluate
           plan | doctor | report | rollout | erase | cache | completion

Exit code 0: done; 1: an error of this package, in one line on stderr, or a command that found something wrong; 2: wrong
usage. See ``docs/cli.md``.
"""

from __future__ import annotations

import click

from llmrec_plugin import __version__
from llmrec_plugin.console import Group

_COMMANDS = {
    "cache": "llmrec_plugin.cli.cache:cache",
    "calibrate": "llmrec_plugin.cli.calibrate:calibrate",
    "check": "llmrec_plugin.testing.commands:check",
    "completion": "llmrec_plugin.cli.completion:completion",
    "data": "llmrec_plugin.interactions.commands:data",
    "doctor": "llmrec_plugin.cli.doctor:doctor",
    "erase": "llmrec_plugin.cli.erase:erase",
    "evaluate": "llmrec_plugin.evaluation.commands:evaluate",
    "export": "llmrec_plugin.cli.export:export",
    "features": "llmrec_plugin.cli.listing:features",
    "models": "llmrec_plugin.cli.listing:models",
    "new-plugin": "llmrec_plugin.scaffold.commands:new_plugin",
    "plan": "llmrec_plugin.cli.plan:plan",
    "plugins": "llmrec_plugin.cli.listing:plugins",
    "report": "llmrec_plugin.reporting.commands:report",
    "rollout": "llmrec_plugin.cli.rollout:rollout",
    "train": "llmrec_plugin.training.commands:train",
}


@click.group(cls=Group, modules=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="llmrec-plugin")
def main() -> None:
    """LLM features for Feast: declare once, get batch, on-demand and training values.

    \b
    llmrec plugins
    llmrec export all-minilm-l6-v2
    llmrec doctor --repo feature_repo
    """
