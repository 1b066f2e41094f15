"""Keys that samples of a mixture carry beside LeRobot's own. They start with "observation." because LeRobot's pipelines
drop every key that they do not know unless it does. None of them is a feature: no configuration lists them.
"""

CAMERA_IS_PRESENT = "observation.camera_is_present"
"""[B, V] bool: which camera slots a sample really has."""
EMBODIMENT_INDEX = "observation.embodiment_index"
"""[B] int64: which robot a sample is of, as a position in ``Mixture.embodiments``."""
SOURCE_INDEX = "observation.source_index"
"""[B] int64: which dataset a sample is from, as a position in ``Mixture.sources``."""
LATENT_IS_CONTENT = "observation.latent_is_content"
"""[B, V, h, w] bool: latent cells that show the scene rather than letterbox bars."""
