from chainlift.study.plan_file import parse_plan
from chainlift.study.runner import cells_of

PLAN = """
name = "lifts"
lengths = [1, 5, 9]
guest_lengths = [1, 9]
lift_lengths = [1, 9]
lift = ["none", "index", "squash"]
tests = ["host", "random"]
repeats = 1
[host_read]
depths = [1]
[chain]
length = 9
size = "512M"
[chain.workload]
size = "64M"
"""


def test_lifts_are_measured_where_the_plan_says_and_there_is_something_to_lift():
    plan = parse_plan(PLAN)
    cells = cells_of(plan)
    guests = [(cell.length, cell.lift) for cell in cells if cell.probe.title == "random read"]
    assert sorted(guests) == [(1, "index"), (1, "none"), (9, "index"), (9, "none"), (9, "squash")]
    assert {(c.length, c.lift) for c in cells if c.probe.title != "random read"} == {*guests, (5, "none")}
