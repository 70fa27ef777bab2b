"""Evaluate trained runs or generated images."""

from jobs.evaluate.settings import Settings


def run(settings: Settings) -> int:
    """Write the report and print its numbers; returns the exit code."""
    if settings.generated is not None:
        from jobs.evaluate.generated import evaluate_generated

        return evaluate_generated(settings)
    from jobs.evaluate.runs import evaluate

    return evaluate(settings)
