"""Prints the results for a person."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ARM_TITLES = {
    "ranker_baseline": "baseline",
    "ranker_llm": "+ LLM",
    "ranker_tags": "+ LLM + tags",
    "ranker_shuffled": "+ shuffled",
}


def console() -> Console:
    """Colors on a terminal, plain text of a fixed width elsewhere."""
    output = Console(highlight=False)
    return output if output.is_terminal else Console(width=120, no_color=True, highlight=False)


def print_results(out: Console, results: dict) -> None:
    style = box.SIMPLE_HEAVY if out.is_terminal else box.ASCII
    table = Table(title="Which packages does this package depend on?", box=style, title_style="bold")
    table.add_column("packages", style="bold", no_wrap=True)
    table.add_column("features", no_wrap=True)
    metrics = list(next(iter(results["slices"].values()))["metrics"])
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    table.add_column(f"{metrics[0]} - baseline", justify="right", no_wrap=True)
    for name, slice_ in results["slices"].items():
        first = slice_["metrics"][metrics[0]]
        for position, (arm, title) in enumerate(ARM_TITLES.items()):
            table.add_row(
                f"{name} ({slice_['lists']} lists)" if position == 0 else "",
                title,
                *(f"{slice_['metrics'][metric]['mean'][arm]:.3f}" for metric in metrics),
                difference(first["minus_baseline"][arm]) if position else "",
                end_section=position == len(ARM_TITLES) - 1,
            )
    out.print(table)
    out.print(
        f"Mean of {len(results['seeds'])} seeds (training negatives and model). [95 % intervals]: paired bootstrap "
        "over the test dependants; green or red where they exclude zero.",
        markup=False,
        style="dim",
    )


def difference(value: dict) -> str:
    color = "green" if value["low"] > 0 else "red" if value["high"] < 0 else "dim"
    return f"[{color}]{value['mean']:+.3f} \\[{value['low']:+.3f}, {value['high']:+.3f}][/{color}]"


def print_example(out: Console, title: str, example: dict) -> None:
    """One dependant with its top packages, without and with the LLM features, and what models wrote about them."""
    style = box.SIMPLE_HEAVY if out.is_terminal else box.ASCII
    out.print(f"\n[bold]{title}: {example['dependant']}[/bold], {escape(example['synopsis'])}")
    table = Table(box=style)
    table.add_column("#", justify="right")
    table.add_column("baseline", no_wrap=True)
    table.add_column("+ LLM", no_wrap=True)
    table.add_column("what it is, as a model wrote it")
    table.add_column("tags that both have")
    for rank, (without, with_) in enumerate(zip(example["baseline"], example["llm"], strict=True), start=1):
        tags = ", ".join(with_["shared_tags"])
        table.add_row(str(rank), entry(without), entry(with_), escape(with_["synopsis"] or ""), escape(tags))
    out.print(table)
    out.print(f"  tags: {', '.join(example['tags'])}", style="dim")
    out.print(f"  knows: {', '.join(example['history'])}", style="dim")
    out.print(f"  to find (+): {', '.join(example['labels'])}", style="dim")


def entry(candidate: dict) -> str:
    cold = " (cold)" if candidate["cold"] else ""
    return f"[green]+ {candidate['package']}{cold}[/green]" if candidate["label"] else f"  {candidate['package']}{cold}"
