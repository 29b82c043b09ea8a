"""Prints the results for a person."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ARM_TITLES = {"ranker_baseline": "baseline", "ranker_llm": "+ LLM", "ranker_shuffled": "+ shuffled"}


def console() -> Console:
    """Colors on a terminal, plain text of a fixed width elsewhere."""
    output = Console(highlight=False)
    return output if output.is_terminal else Console(width=120, no_color=True, highlight=False)


def print_results(out: Console, results: dict) -> None:
    style = box.SIMPLE_HEAVY if out.is_terminal else box.ASCII
    table = Table(title="Which packages does this package depend on?", box=style, title_style="bold")
    table.add_column("packages", style="bold", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for title in (*ARM_TITLES.values(), "LLM - baseline", "shuffled - baseline"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, slice_ in results["slices"].items():
        title = f"{name} ({slice_['lists']} lists)"
        for position, (metric, values) in enumerate(slice_["metrics"].items()):
            table.add_row(
                title if position == 0 else "",
                metric,
                *(f"{values['mean'][arm]:.3f}" for arm in ARM_TITLES),
                *(difference(values["minus_baseline"][arm]) for arm in ("ranker_llm", "ranker_shuffled")),
                end_section=position == len(slice_["metrics"]) - 1,
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
    """One dependant with its top packages, without and with the LLM features."""
    style = box.SIMPLE_HEAVY if out.is_terminal else box.ASCII
    out.print(f"\n[bold]{title}: {example['dependant']}[/bold], {escape(example['synopsis'])}")
    table = Table(box=style)
    table.add_column("#", justify="right")
    table.add_column("baseline")
    table.add_column("+ LLM")
    for rank, (without, with_) in enumerate(zip(example["baseline"], example["llm"], strict=True), start=1):
        table.add_row(str(rank), entry(without), entry(with_))
    out.print(table)
    out.print(f"  knows: {', '.join(example['history'])}", style="dim")
    out.print(f"  to find (+): {', '.join(example['labels'])}", style="dim")


def entry(candidate: dict) -> str:
    cold = " (cold)" if candidate["cold"] else ""
    return f"[green]+ {candidate['package']}{cold}[/green]" if candidate["label"] else f"  {candidate['package']}{cold}"
