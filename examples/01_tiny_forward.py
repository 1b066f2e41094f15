"""01: the whole model on random numbers.

Builds the smallest InternVLA-A1 (same code as the 3B, fewer and narrower layers), lets it compute a training loss, act
for eight control ticks, and imagine the frame one interval ahead. The numbers mean nothing, as the weights are random;
the shapes and the order of calls are those of the real thing.

Run:    python examples/01_tiny_forward.py
Takes:  about 10 seconds on one CPU core, most of them imports. No network, no dataset.
Prints (numbers vary):

    who attends to whom
                   understanding     foresight         state       actions
    understanding              x             .             .             .
        foresight              x             x             .             .
            state              x             x             x             .
          actions              x             x             x             x
    loss 2.1 = action 2.1 + 0.01 x foresight 0.36
    chunk of 10 actions for 2 robots: (2, 10, 4)
    tick 0: 35.1 ms
    tick 1: 0.9 ms
    tick 5: 33.0 ms
    imagined future of 3 cameras: latents (2, 3, 48, 16, 16), images (2, 3, 3, 64, 64)

Next: examples/02_train_on_your_dataset.py, or read src/lerobot_internvla/model/internvla_a1.py.
"""

import time

from lerobot_internvla.model.token_blocks import explain
from lerobot_internvla.testing import tiny_batch, tiny_config, tiny_policy


def main() -> None:
    print("who attends to whom")
    print(explain())

    # Three cameras, four joints, chunks of 10 actions of which 5 are executed, past and future 3 frames away.
    config = tiny_config()
    policy = tiny_policy(config)

    # Training: cameras [B, (past, now, future), 3, H, W], state, the next 10 actions, a sentence per sample.
    policy.train()
    loss, metrics = policy.forward(tiny_batch(config))
    loss.backward()
    terms = f"action {metrics['loss_action']:.2g} + {config.lambda_gen} x foresight {metrics['loss_foresight']:.2g}"
    print(f"loss {loss.item():.2g} = {terms}")

    # A chunk of actions from pictures of past and now, and the state.
    chunk = policy.predict_action_chunk(tiny_batch(config, moment="training"))
    print(f"chunk of {config.chunk_size} actions for 2 robots: {tuple(chunk.shape)}")

    # Acting: one picture per camera and the state on every control tick; the policy remembers the pictures by itself.
    # Ticks 0 and 5 predict a chunk, the others take the next action of it.
    policy.reset()
    for tick in range(8):
        observation = tiny_batch(config, moment="tick", seed=tick)
        start = time.perf_counter()
        policy.select_action(observation)
        print(f"tick {tick}: {1000 * (time.perf_counter() - start):.1f} ms")

    latents, images = policy.predict_foresight(tiny_batch(config, moment="training"))
    cameras = len(policy.camera_slots)
    print(f"imagined future of {cameras} cameras: latents {tuple(latents.shape)}, images {tuple(images.shape)}")


if __name__ == "__main__":
    main()
