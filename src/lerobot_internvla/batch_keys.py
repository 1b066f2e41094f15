"""Keys that samples carry beside LeRobot's own: those of a mixture, and observations of a robot under RTC. They start
with "observation." because LeRobot's pipelines drop every key that they do not know unless it does. None of them is a
feature: no configuration lists them.
"""

CAMERA_IS_PRESENT = "observation.camera_is_present"
"""[B, V] bool: which camera slots a sample really has."""
EMBODIMENT_INDEX = "observation.embodiment_index"
"""[B] int64: which robot a sample is of, as a position in ``Mixture.embodiments``."""
SOURCE_INDEX = "observation.source_index"
"""[B] int64: which dataset a sample is from, as a position in ``Mixture.sources``."""
LATENT_IS_CONTENT = "observation.latent_is_content"
"""[B, V, h, w] bool: latent cells that show the scene rather than letterbox bars."""
CACHED_LATENTS = "observation.cached_latents"
"""[B, V, 3, C, h, w]: latents of past, now and future from a cache (data/latent_cache.py); then frames are of now."""
CONTROL_TICK = "observation.control_tick"
"""[B, 1] float32: when an observation was made, in control ticks (serving/rtc_engine.py)."""
PAST_AND_NOW = "observation.past_and_now"
"""A ``PastAndNow`` (observation_memory.py): the moments that frames [B, 2, 3, H, W] are of. The policy's own while it
acts; no sample of a dataset has it."""
