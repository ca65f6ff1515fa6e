"""The constants of the policy: what ships, and what the simulator runs with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Times in seconds, shares of the streams that a replica carries.

    Attributes:
        up_share: a replica is meant to carry this share of its streams; the rest is room for what
            comes while another one starts. A stream never moves to a new replica.
        down_share: replicas are given back if the others then carried no more than this.
        up_after_s: more is wanted for so long before more is asked for; a burst that is over by
            then starts nothing.
        up_factor: how many times the replicas there are may be asked for at a time.
        up_every_s: between two of these.
        down_after_s: nothing is given back that was wanted within this time.
        down_every_s: between two reductions.
        down_part: of the replicas, given back at a time; one at least.
        start_s: how long a replica takes to start, by which arrivals are extrapolated.
        growth_limit: how many times the arrivals of now are expected by then, at most.
        spare: replicas beyond what is wanted, so that a burst meets them ready.
        first_audio_s: what the p95 of first audio shall stay below.
        slack_s: how far ahead of its listener the slowest twentieth of streams shall be.
        kv_share: of a talker's KV pool, above which it counts as full.
        press_share: of the streams they carry that replicas must have, or more of them would not
            help against late audio: the cause is another one.
        press_factor: how many times the replicas that the load calls for late audio may ask for,
            or for one more; a machine that is too slow for one stream gets no faster by sharing.
        press_every_s: between two replicas for that reason; it takes so long to see the effect.
        zero_after_s: nobody asked for so long: no replica is left, where none need be.
        streams_per_ingress, ingress_down_after_s: the ingresses' own, apart from the stages'.
    """

    up_share: float = 0.75
    down_share: float = 0.7
    up_after_s: float = 1.0
    up_factor: float = 2.0
    up_every_s: float = 2.0
    down_after_s: float = 300.0
    down_every_s: float = 30.0
    down_part: float = 0.1
    start_s: float = 15.0
    growth_limit: float = 2.0
    spare: int = 0
    first_audio_s: float = 0.5
    slack_s: float = 0.2
    kv_share: float = 0.9
    press_share: float = 0.3
    press_factor: float = 1.5
    press_every_s: float = 20.0
    zero_after_s: float = 900.0
    streams_per_ingress: int = 48
    ingress_down_after_s: float = 900.0
