"""Processes that die: at every named crash point, and by torture of a fixed seed."""

from framework import scenario
from torture import points, rounds

TORTURE_SECONDS = 180


def _say(line):
    print(f"e2e: {line}", flush=True)


@scenario
def every_process_dies_at_every_crash_point(context):
    """Under load, with a guest; what each crash leaves is met by the next start, and all content is checked."""
    known, deaths, figures = points.every_point(context, _say)
    _say(
        f"{deaths} deaths at {known} crash points; {figures['written'] >> 20} MiB written, "
        f"{figures['read'] >> 20} MiB read and checked, {figures['passes']} passes of a guest's fio"
    )


@scenario
def a_short_torture(context):
    """Kills, stops, partitions and failing drives and flash, changing cores for three minutes, in network namespaces."""
    totals = rounds.Totals()
    rounds.run_round(context, context.options.seed, TORTURE_SECONDS, totals, _say)
    for line in totals.lines():
        _say(line)
