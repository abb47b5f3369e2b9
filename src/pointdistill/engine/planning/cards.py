"""Estimates for a GPU that is not in this machine: known cards, and the time of a step by their data sheets.

Nothing is measured. A step takes the time of its products at a share of the card's rate, and of its memory traffic
at a share of the bandwidth, one after the other; the shares are what well-written kernels reach. The traffic is
derived from the operations that were counted (docs/results.md, "What counting foretells of a GPU"). A real run
also waits for its host and for data, so its time is stated as a range.

Rates are for dense matrices with sums in float32, without sparsity, from the maker's data sheets and white
papers: "NVIDIA Ampere GA102" (RTX 3060, 3090, A6000), "NVIDIA Ada GPU Architecture" 2.02, appendix A (RTX 4060
Ti to 4090, 6000 Ada), "NVIDIA RTX Blackwell GPU Architecture" (RTX 5080, 5090), the data sheets of A10, A40,
L4, L40S, A100, H100, H200, and of HGX B200. Data sheets that give a rate with sparsity give twice the figure
here. Where a white paper lists only larger cards of its kind (RTX 3060, 4060 Ti, 4070), rates of tensor cores
are in their proportion to the float32 rate, which is twice the number of cores times the boost clock. Consumer
cards do half as many products with sums in float32 as with sums in float16, which is the figure that is often
quoted.

Memory is what the driver reports (``nvidia-smi``), which on cards with GDDR6 that keep error-correcting codes
in it by default (A10, A40, L4, L40S) is a sixteenth less than the data sheet says: 22.5 of 24 GiB, 45 of 48
GiB.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining.cost import parameters, step_flops, step_gib, step_traffic
from pointdistill.errors import ConfigError

RATE_SHARE = 0.6
"""Share of a card's rate that products of this size reach."""

BANDWIDTH_SHARE = 0.8
"""Share of its memory bandwidth."""

LINK_SHARE = 0.6
"""Share of the bandwidth between cards that an exchange of gradients reaches."""

HOST_SECONDS = 0.04
"""Time in which the host starts the some 5,000 operations of a step; a faster card waits for it."""

SLOWEST = 4.0
"""The upper end of the stated time, as a multiple of the lower. Of what is computed for them, the published runs
took 2.1 times (RTX 4090) and 3.2 to 3.8 times (two on an A100, whose memory is not stated). They include waiting
for data and evaluating, and are of other code than this."""

USABLE = 0.97
"""Share of the memory that is left beside the driver's and torch's own part."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated time and memory of a step."""

    seconds: float | None
    """Wall time; None if nothing was measured."""

    gib: float | None
    """Peak memory of the GPU, or of the process on a CPU; None if the system does not report it."""

    basis: str
    """How the two were estimated, in words."""

    fits: bool = True
    """False if a step of this batch was tried and did not fit into memory, or by its estimate does not."""

    seconds_at_most: float | None = None
    """For a time that nothing was measured for: the upper end of its range, of which ``seconds`` is the lower."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, by its data sheet."""

    name: str
    title: str
    memory_gib: float
    """What the driver reports; error-correcting codes kept in the memory itself are taken off."""

    bf16: float
    """TFLOP/s of dense products of bf16 numbers with sums in float32."""

    tf32: float
    """The same of TF32 numbers. For comparison: training here uses bf16 or plain float32."""

    float32: float
    """TFLOP/s without tensor cores."""

    bandwidth: float
    """GB/s of its memory."""

    link: float
    """GB/s to another card, in one direction: NVLink of SXM cards, else PCIe (bridges are sold apart)."""


CARDS = (
    Card("rtx3060", "GeForce RTX 3060", 12, 25.5, 12.7, 12.7, 360, 32),
    Card("rtx3090", "GeForce RTX 3090", 24, 71.2, 35.6, 35.6, 936, 32),
    Card("rtx4060ti", "GeForce RTX 4060 Ti, 16 GB", 16, 44.1, 22.1, 22.1, 288, 16),
    Card("rtx4070", "GeForce RTX 4070", 12, 58.3, 29.1, 29.1, 504, 32),
    Card("rtx4080", "GeForce RTX 4080", 16, 97.5, 48.7, 48.7, 717, 32),
    Card("rtx4090", "GeForce RTX 4090", 24, 165.2, 82.6, 82.6, 1008, 32),
    Card("rtx5080", "GeForce RTX 5080", 16, 112.6, 56.3, 56.3, 960, 64),
    Card("rtx5090", "GeForce RTX 5090", 31.8, 209.5, 104.8, 104.8, 1792, 64),
    Card("a10", "A10", 22.5, 125, 62.5, 31.2, 600, 32),
    Card("a40", "A40", 45, 149.7, 74.8, 37.4, 696, 32),
    Card("rtxa6000", "RTX A6000", 48, 154.8, 77.4, 38.7, 768, 32),
    Card("rtx6000ada", "RTX 6000 Ada", 48, 364.2, 182.1, 91.1, 960, 32),
    Card("l4", "L4", 22.5, 121, 60, 30.3, 300, 32),
    Card("l40s", "L40S", 45, 362, 183, 91.6, 864, 32),
    Card("a100-40gb", "A100 SXM, 40 GB", 40, 312, 156, 19.5, 1555, 300),
    Card("a100", "A100 SXM, 80 GB", 80, 312, 156, 19.5, 2039, 300),
    Card("h100-pcie", "H100 PCIe", 79.6, 756, 378, 51, 2000, 64),
    Card("h100", "H100 SXM", 79.6, 989, 494, 67, 3350, 450),
    Card("h200", "H200 SXM", 140.4, 989, 494, 67, 4800, 450),
    Card("b200", "B200 SXM (HGX)", 179, 2250, 1100, 75, 7700, 900),
)


def find_card(name: str) -> Card:
    """The card of this name; capitals, blanks, hyphens and the maker's name do not matter.

    Raises:
        ConfigError: for a name that is not known; suggests the nearest.
    """
    by_key = {_key(card.name): card for card in CARDS}
    key = _key(name)
    if key in by_key:
        return by_key[key]
    near = difflib.get_close_matches(key, by_key, n=1)
    hint = f"did you mean {by_key[near[0]].name!r}? " if near else ""
    msg = f"no GPU {name!r} is known; {hint}known are {', '.join(card.name for card in CARDS)}"
    raise ConfigError(msg, settings=("gpu",))


def _key(name: str) -> str:
    text = "".join(letter for letter in name.lower() if letter.isalnum())
    for word in ("nvidia", "geforce", "tesla"):
        text = text.replace(word, "")
    return text.removesuffix("80gb") if text.startswith(("a100", "h100")) else text


def estimate_on_card(
    config: PretrainConfig, card: Card, *, count: int, points: int, bf16: bool
) -> Estimate:
    """What a step takes on ``count`` cards that share its batch, by arithmetic.

    Args:
        config: the run, with the batch of all cards together, which is a multiple of ``count``.
        card: each of them.
        count: how many.
        points: points of a stored shape.
        bf16: whether products are in bf16; otherwise in float32.
    """
    share = replace(config, batch_size=config.batch_size // count)
    rate = RATE_SHARE * 1e12 * (card.bf16 if bf16 else card.float32)
    traffic = step_traffic(share) * (1 if bf16 else 2)
    work = step_flops(share) / rate + traffic / (BANDWIDTH_SHARE * 1e9 * card.bandwidth)
    # Each card sends and receives the gradients of all others in a ring.
    gradients = 4 * parameters(config).student * 2 * (count - 1) / count
    seconds = max(work, HOST_SECONDS) + gradients / (LINK_SHARE * 1e9 * card.link)
    gib = step_gib(share, points=points, bf16=bf16)
    basis = (
        f"estimate from the data sheet of the {card.title}, nothing was measured: "
        "published runs took 2.1 to 3.8 times the shorter time"
    )
    fits = gib <= USABLE * card.memory_gib
    return Estimate(seconds, gib, basis, fits, seconds_at_most=SLOWEST * seconds)
