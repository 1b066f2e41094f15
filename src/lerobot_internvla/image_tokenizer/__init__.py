"""Pixels <-> latents for foresight. Image tokenizers are frozen: they define the target, and nothing trains them.

    protocol.py             what foresight needs: encode, decode, latent_channels, compression
    spec.py                 which one and how large (plain data, no torch)
    factory.py              build_image_tokenizer(spec), load_image_tokenizer(folder or Hub id)
    haar.py                 parameter-free and exactly invertible; also the first two levels of Cosmos
    cosmos.py               NVIDIA's continuous CI8x8 as plain modules (imports diffusers)
    cosmos_weights.py       its weights from NVIDIA's files, safetensors or an InternVLA-A1 checkpoint
    torchscript_archive.py  tensors out of a ``.jit`` file without running it

Nothing is imported here, so that ``model.architecture`` can name a spec without loading anything else.
"""
