"""``llmrec calibrate``: how a model is fastest on this machine."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any, get_args

import click

from llmrec_plugin.cli.common import open_artifacts
from llmrec_plugin.console import print_table, result
from llmrec_plugin.inference import Profile
from llmrec_plugin.settings import load_settings


def _show(measured: dict[str, Any]) -> None:
    if measured["placements"]:
        print_table(measured["placements"])
    else:
        click.echo(f"{measured['runtime']} on {measured['provider']} leaves nothing to choose.")


@click.command()
@click.argument("model")
@click.option("--profile", type=click.Choice(get_args(Profile)), default="batch", show_default=True)
@result(_show)
def calibrate(model: str, profile: Profile) -> dict[str, Any]:
    """Measures how MODEL is fastest on this machine, shows it, and keeps it for later runs.

    Batch runs and servers do this by themselves. Do it by hand on an idle machine if they had to measure on a busy one.

    \b
    llmrec calibrate all-minilm-l6-v2
    llmrec calibrate all-minilm-l6-v2 --profile online
    """
    from llmrec_plugin.runtime.encoder import Encoder  # loads numpy and, with the model, a runtime

    encoder = Encoder(open_artifacts().current(model), load_settings(), profile)
    measured = encoder.calibrate()
    unit = "tokens/s" if profile == "batch" else "ms"
    rows = [
        {
            **asdict(placement),
            unit: round(median(values) * (1 if profile == "batch" else 1000), 2 if profile == "online" else 0),
            "chosen": placement == encoder.placement,
        }
        for placement, values in measured.items()
    ]
    return {"model": model, "runtime": encoder.runtime.name, "provider": encoder.provider, "placements": rows}
