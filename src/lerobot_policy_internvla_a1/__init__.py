"""Found by stock LeRobot through its name (``lerobot_policy_*``); importing the library registers the policy."""

import lerobot_internvla as lerobot_internvla
