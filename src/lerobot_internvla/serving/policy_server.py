"""LeRobot's policy server for this policy: the GPU is elsewhere, the robot runs LeRobot's own ``robot_client``.

    robot_client (unchanged)   observation, time  --gRPC-->  every frame recorded with its time
                               actions with times <--gRPC--  chunk: past = the frame nearest to one interval before

LeRobot's server has a closed list of policies, shows the policy the newest observation alone, drops observations whose
joints moved by less than 1 (a whole radian, or a whole scene that changed around a resting arm), stretches pictures to
the training resolution, and never resets the policy. Here all of that is different, and nothing else.

This module needs grpc (extra ``async``). LeRobot's protocol is pickle over an open port: whoever can connect can run
any program on this computer. ``refuse_public_address`` is the reason why that is nobody by default.
"""

import copy
import ipaddress
import logging
from dataclasses import dataclass, field, replace
from typing import Any

from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.constants import SUPPORTED_POLICIES
from lerobot.async_inference.helpers import TimedAction, TimedObservation
from lerobot.async_inference.policy_server import PolicyServer
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.processor import RenameObservationsProcessorStep
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from lerobot_internvla.errors import InternVLAError

from .action_limits import ActionLimiter, make_limiter
from .faults import refuse_joints_in_another_order
from .robot_view import RobotView, refuse_missing_cameras

logger = logging.getLogger(__name__)

POLICY_TYPE = "internvla_a1"


@dataclass
class InternVLAPolicyServerConfig(PolicyServerConfig):
    """LeRobot's settings of its server, and five more.

    Raises:
        InternVLAError: an address that other computers can reach, without ``allow_any_peer``; what LeRobot refuses.
    """

    # Address to listen on. Other computers reach 127.0.0.1 through an ssh tunnel only.
    host: str = "127.0.0.1"
    # Listen where other computers can connect. Every one of them can then run any program here: see docs/robots.md.
    allow_any_peer: bool = False
    # The robot's camera keys -> the policy's, as for lerobot-rollout; the client has no such flag.
    rename_map: dict[str, str] = field(default_factory=dict)
    # The robot: of a policy of several, which one it drives; of one, the preset or YAML file with its action limits.
    # Default: what the checkpoint says.
    embodiment: str | None = None
    # Limit actions to the ranges and speeds of the robot's joints, where its embodiment has them: see docs/robots.md.
    limit_actions: bool = True

    def __post_init__(self) -> None:
        if self.fps <= 0:  # LeRobot divides by it
            raise InternVLAError(f"--fps={self.fps}: expected the robot's control rate in Hz, more than 0.")
        try:
            super().__post_init__()
        except ValueError as error:  # draccus would hide its text
            raise InternVLAError(f"The policy server cannot be started so: {error}.") from error
        if not self.allow_any_peer:
            refuse_public_address(self.host, self.port)


def refuse_public_address(host: str, port: int) -> None:
    """Nothing, where only this computer can connect to ``host``.

    Raises:
        InternVLAError: anything but a loopback address, a host name other than localhost among it.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InternVLAError(
            f"--host={host} can be reached by other computers, and LeRobot's protocol lets whoever connects run any "
            "program on this one (it unpickles what it is sent). Listen on 127.0.0.1 and let the robot's computer come "
            f"through ssh: there, run `ssh -N -L {port}:127.0.0.1:{port} <user>@<this computer>` and give robot_client "
            f"--server_address=127.0.0.1:{port}. On a network where you trust every computer: --allow_any_peer=true."
        )


def admit_policy() -> None:
    """Put this policy on LeRobot's list of served policies."""
    if POLICY_TYPE not in SUPPORTED_POLICIES:
        SUPPORTED_POLICIES.append(POLICY_TYPE)


class InternVLAPolicyServer(PolicyServer):
    """LeRobot's server, with a memory for frames. Other policies are served as LeRobot serves them."""

    config: InternVLAPolicyServerConfig
    # LeRobot's constructor sets these to None, which is all that its types say of them.
    policy: Any
    preprocessor: Any
    lerobot_features: Any
    last_processed_obs: Any

    def __init__(self, config: InternVLAPolicyServerConfig) -> None:
        admit_policy()
        super().__init__(config)
        self._view: RobotView | None = None
        self._predicting_for: TimedObservation | None = None
        self._told_no_policy = False
        self._limiter: ActionLimiter | None = None
        self._limits_looked_up = False
        self._sent: dict[int, Tensor] = {}
        """Of the last chunk: timestep -> [A]."""

    # ------------------------------------------------------------------ the connection

    def Ready(self, request: Any, context: Any) -> Any:
        """A client (re)connects: an episode begins."""
        answer = super().Ready(request, context)
        self.last_processed_obs = None  # LeRobot keeps it: the new episode's first observations would be "similar"
        if self.policy is not None:
            self.policy.reset()
        self._end_episode()
        return answer

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:
        """The client names checkpoint and device; the policy is loaded."""
        answer = super().SendPolicyInstructions(request, context)
        self._view, self._told_no_policy = None, False
        self._end_episode()
        self._limiter, self._limits_looked_up = None, False
        if self.policy is not None and self.policy_type == POLICY_TYPE:
            step = next(s for s in self.preprocessor.steps if isinstance(s, RenameObservationsProcessorStep))
            step.rename_map = {**step.rename_map, **self.config.rename_map}
            self._view = RobotView(self.lerobot_features, step.rename_map, self.policy.config.image_features)
            try:
                if self.policy.rows and self.config.embodiment is not None:
                    self.policy.act_as(self.config.embodiment)
                self.policy.recognise(len(self._view.joints))
            except InternVLAError as error:
                raise InternVLAError(f"{error} The flag of this server is --embodiment=<name>.") from None
            refuse_joints_in_another_order(self.policy, self._view.joints, None)
            refuse_missing_cameras(
                self._view, self.policy, 'start the server with --rename_map=\'{{"<theirs>": "{}"}}\'.'
            )
        return answer

    # ------------------------------------------------------------------ observations

    @property
    def policy_image_features(self) -> dict[str, PolicyFeature]:
        """The sizes that LeRobot scales the robot's pictures to: their own. The policy letterboxes, as in training."""
        if self._view is None:
            return super().policy_image_features
        shapes = {key: f["shape"] for key, f in self.lerobot_features.items() if key.startswith(OBS_IMAGES)}
        return {key: PolicyFeature(FeatureType.VISUAL, (3, *shape[:2])) for key, shape in shapes.items()}

    def _tick(self, observation: TimedObservation) -> float:
        """The client's clock in control ticks of the training data."""
        return observation.get_timestamp() * (self.policy.control_rate_hz or self.config.fps)

    def _enqueue_observation(self, obs: TimedObservation) -> bool:
        if self.policy is None:
            if not self._told_no_policy:
                logger.warning(
                    "A client sends observations but never named a policy: this server was restarted, and LeRobot's "
                    "client does not notice. Start the client again."
                )
                self._told_no_policy = True
            return False
        if self._view is not None:
            raw = obs.get_observation()
            try:
                self._view.check(raw)
            except InternVLAError as error:
                logger.error("Observation #%d is not used: %s", obs.get_timestep(), error)
                return False
            try:
                self.policy.observe(self._view.frames(raw), self._tick(obs))
            except InternVLAError as error:  # the client's clock was set back, or a camera changed its resolution
                logger.warning("The memory of frames begins anew: %s", error)
                self.policy.reset()
                self._sent = {}
                self.policy.observe(self._view.frames(raw), self._tick(obs))
        return super()._enqueue_observation(obs)

    def _obs_sanity_checks(self, obs: TimedObservation, previous_obs: TimedObservation) -> bool:
        if self._view is None:
            return super()._obs_sanity_checks(obs, previous_obs)
        with self._predicted_timesteps_lock:
            return obs.get_timestep() not in self._predicted_timesteps

    # ------------------------------------------------------------------ actions

    def _predict_action_chunk(self, observation_t: TimedObservation) -> list[TimedAction]:
        self._predicting_for = observation_t
        try:
            return self._limited(super()._predict_action_chunk(observation_t), observation_t)
        except Exception:  # whatever it was, it goes on to LeRobot below
            # The client waits for this answer before it insists on another one: let any observation through instead.
            self.last_processed_obs = None
            with self._predicted_timesteps_lock:
                self._predicted_timesteps.discard(observation_t.get_timestep())
            raise

    def _get_action_chunk(self, observation: dict[str, Any]) -> Tensor:
        if self._view is None:
            return super()._get_action_chunk(observation)
        assert self._predicting_for is not None
        chunk = self.policy.predict_action_chunk(observation, tick=self._tick(self._predicting_for))
        return chunk[:, : self.actions_per_chunk]

    def _limited(self, chunk: list[TimedAction], observation: TimedObservation) -> list[TimedAction]:
        """The chunk within the limits of the robot's joints.

        Its first action is compared with what the chunk before had for the tick before or, where that had none, with
        where the joints are.
        """
        if self._view is None or not chunk:
            return chunk
        limiter = self._find_limiter()
        if limiter is None:
            return chunk
        before = self._sent.get(chunk[0].get_timestep() - 1)
        if before is None:
            raw = observation.get_observation()
            limiter.start_from({joint: float(raw[joint]) for joint in self._view.joints})
        else:
            limiter.follow(before)
        limited = [replace(timed, action=limiter.limit(timed.get_action())) for timed in chunk]
        self._sent = {timed.get_timestep(): timed.get_action() for timed in limited}
        return limited

    def _find_limiter(self) -> ActionLimiter | None:
        """Looked up once per policy, when it knows which of its robots it drives: at its first chunk."""
        if not self._limits_looked_up:
            self._limits_looked_up = True
            policy = self.policy
            config = copy.copy(policy.config)
            config.limit_actions = config.limit_actions and self.config.limit_actions
            if not policy.rows:
                config.embodiment = self.config.embodiment or config.embodiment
            # The client assigns action number i to its joint number i, and does not tell how that is called.
            names = policy.rows[policy.robot].embodiment.action_names if policy.rows else config.action_feature_names
            if not names:
                logger.warning("Commands are not limited: the checkpoint does not know the names of the joints.")
            else:
                self._limiter = make_limiter(
                    config,
                    names,
                    rate_hz=1.0 / self.config.environment_dt,
                    robot=policy.robot,
                    robot_type=config.robot_type,
                )
        return self._limiter

    def _end_episode(self) -> None:
        self._sent = {}
        if self._limiter is not None:
            self._limiter.end_episode()


def serve(config: InternVLAPolicyServerConfig) -> None:
    """Serve until the process ends."""
    from concurrent import futures

    import grpc
    from lerobot.transport import services_pb2_grpc

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(InternVLAPolicyServer(config), server)
    address = f"{config.host}:{config.port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise InternVLAError(
            f"Cannot listen on {address}: {error}. Is another server running there? Pass another --port."
        ) from error
    server.start()
    logger.info("Policy server listens on %s. Stop it with Ctrl-C.", address)
    try:
        server.wait_for_termination()
    except KeyboardInterrupt:
        logger.info("Stopped.")
    finally:
        server.stop(grace=1.0).wait()
