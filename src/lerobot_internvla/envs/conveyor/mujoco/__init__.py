"""The conveyor in MuJoCo: ``arm`` (numbers and kinematics), ``scene`` (MJCF), ``world``, ``expert``, ``rendering``."""
