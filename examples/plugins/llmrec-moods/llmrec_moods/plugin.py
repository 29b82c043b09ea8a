"""What this plugin declares."""

from __future__ import annotations

import os
from pathlib import Path

from llmrec_plugin import Decoding, GeneratorModel, Tags, TokenFeature, hookimpl
from llmrec_plugin.prompts import load_prompt

TAGS = (  # the prompt names them, too
    "cosy",
    "dark",
    "funny",
    "moving",
    "romantic",
    "strange",
    "tense",
)


@hookimpl
def llmrec_register_features() -> list[TokenFeature]:
    return [
        TokenFeature(
            name="film_plot_tags",
            entity="film",
            model="moods-writer",
            prompt=load_prompt("package:llmrec_moods/prompts/film_plot_tags.md"),
            output=Tags(vocabulary=TAGS, max_items=3, ids=True),
            decoding=Decoding(max_new_tokens=24),
            status=True,
            description="The moods of a film, from its title and plot.",
        )
    ]


@hookimpl
def llmrec_register_models() -> list[GeneratorModel]:
    folder = os.environ.get("MOODS_MODEL", "~/models/moods-writer")
    return [
        GeneratorModel(
            name="moods-writer",
            source=f"path:{Path(folder).expanduser().absolute()}",
            task="causal",
            chat=True,
            max_tokens=2048,
        )
    ]
