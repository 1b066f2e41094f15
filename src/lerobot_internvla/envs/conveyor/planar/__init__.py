"""The conveyor in 2-D, seen from above: ``world`` (physics), ``expert`` (scripted), ``drawing`` (cameras)."""
