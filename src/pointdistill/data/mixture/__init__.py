"""The whole corpus from whatever archives a folder holds: what is there, what it costs, and the build."""

from pointdistill.data.mixture.build import build_mixture, retry_mixture
from pointdistill.data.mixture.fetching import LARGE, FetchReport, Offer, fetch_missing, fetchable
from pointdistill.data.mixture.held_out import HELD_OUT
from pointdistill.data.mixture.plan import MixturePlan, PlanRow, plan_mixture
from pointdistill.data.mixture.source_status import (
    MixtureRequest,
    SourceStatus,
    mixture_sources,
    official_shapes,
    scan_sources,
)

__all__ = [
    "HELD_OUT",
    "LARGE",
    "FetchReport",
    "MixturePlan",
    "MixtureRequest",
    "Offer",
    "PlanRow",
    "SourceStatus",
    "build_mixture",
    "fetch_missing",
    "fetchable",
    "mixture_sources",
    "official_shapes",
    "plan_mixture",
    "retry_mixture",
    "scan_sources",
]
