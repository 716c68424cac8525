from typing import Any

from jaxcnn.arena.summary import markdown_table


def entry(optimizer: str, correct: list[int], **changes: Any) -> dict[str, Any]:
    def runs(scores: list[int]) -> list[dict[str, Any]]:
        return [{"correct": one, "total": 100, "diverged_at": 0} for one in scores]

    trials = [{"values": {"learning_rate": 0.0123456}, "diverged_at": step} for step in (0, 7)]
    made = {"optimizer": optimizer, "trials": trials, "best": 0, "at_edge": []}
    return made | {"final": runs(correct), "untuned": runs([50])} | changes


def test_the_most_accurate_comes_first() -> None:
    table = markdown_table([entry("sgd", [90, 92]), entry("lion", [95], at_edge=["learning_rate"])])
    assert table.splitlines()[2:] == [
        "| lion | 95.00 % | 50.00 % | 0.0123 (at the edge) | 1 of 4 |",
        "| sgd | 91.00 ± 1.00 % | 50.00 % | 0.0123 | 1 of 5 |",
    ]
