"""What a run will cost: parameters, steps, memory, hours and disk, before anything starts."""

from pointdistill.engine.planning.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
