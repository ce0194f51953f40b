"""The Pareto front: the models that no other one beats in both respects."""

from collections.abc import Sequence

Point = tuple[float, float]


def front(points: Sequence[Point], higher_x: bool = False, higher_y: bool = False) -> list[int]:
    """Numbers of the points that no other equals or beats in both and beats in one, from the best x to the worst.

    Lower is better unless `higher_x` or `higher_y` says otherwise; of equal points all stand on the front.
    """
    turned = [(-x if higher_x else x, -y if higher_y else y) for x, y in points]
    order = sorted(range(len(points)), key=lambda number: turned[number])
    kept: list[int] = []
    for number in order:
        x, y = turned[number]
        if not kept or y < turned[kept[-1]][1] or (x, y) == turned[kept[-1]]:
            kept.append(number)
    return kept
