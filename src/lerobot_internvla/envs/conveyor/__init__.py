"""A dynamic two-arm task: pick the named parcel off a moving belt and put it into the named bin.

``task``        what is asked and how hard it is, shared by every simulator
``backend``     what a simulator has to offer, and the table of simulators
``planar``      the 2-D simulator: world (physics), expert, drawing (OpenCV)
``mujoco``      the 3-D simulator: arm, scene, world (physics), expert, rendering (OpenGL)
``people``      a frame for videos, composed of either simulator's views
``gym_env``     the Gymnasium environment that LeRobot steps
``recording``   expert episodes -> LeRobotDataset
``evaluation``  success of the expert and of doing nothing, by belt speed

Importing this package imports neither OpenCV, MuJoCo nor any environment.
"""
