"""Acting in real time: guidance by the previous chunk, frames of every control tick, the policy server, faults."""
