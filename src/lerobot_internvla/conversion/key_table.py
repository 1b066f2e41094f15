"""The closed, invertible table between the reference's tensor names and ours.

One table per backbone family, written as data. A row is one of

    Rename     one tensor, another name; ``store`` says into which of our two state dicts it goes
    Alias      a second name for a tensor that another row stores (tied weights)
    Constant   a tensor whose value is known: checked and dropped on reading, made again on writing

Names on our side are relative to ``InternVLAA1`` (the policy adds ``model.``) or to the image tokenizer. Nothing is
transposed, split or merged. A name without a row is an error, never a warning; so is a tensor that is missing or has
another shape than the model. Names and shapes: the released checkpoint's key list.

Pattern language: ``{#}`` is an index, ``{a|b}`` one of the spelled-out choices. On our side ``{}`` repeats the fields
in order, which is what makes every row invertible.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from lerobot_internvla.errors import InternVLAError
from lerobot_internvla.model.vision_language import IMAGENET_MEAN, IMAGENET_STD

Store = Literal["policy", "image_tokenizer"]
Shape = tuple[int, ...]

_FIELD = re.compile(r"\{([^}]*)\}")
_INDEX = r"(?:0|[1-9][0-9]*)"


def _regex(pattern: str, fields: Iterable[str] | None = None) -> re.Pattern[str]:
    """Compile a pattern. ``fields`` gives the meaning of each ``{}`` (patterns of our side)."""
    meanings = iter(fields) if fields is not None else None
    parts: list[str] = []
    end = 0
    for match in _FIELD.finditer(pattern):
        meaning = match[1] if meanings is None else next(meanings)
        choices = _INDEX if meaning == "#" else "|".join(map(re.escape, meaning.split("|")))
        parts += [re.escape(pattern[end : match.start()]), f"({choices})"]
        end = match.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]))


@dataclass(frozen=True)
class Rename:
    """``reference`` -> ``ours`` inside ``store``; fields are copied in order."""

    reference: str
    ours: str
    store: Store = "policy"

    def __post_init__(self) -> None:
        assert self.ours.count("{}") == len(_FIELD.findall(self.reference)), self

    @cached_property
    def _reference_regex(self) -> re.Pattern[str]:
        return _regex(self.reference)

    @cached_property
    def _our_regex(self) -> re.Pattern[str]:
        return _regex(self.ours, _FIELD.findall(self.reference))

    def to_ours(self, name: str) -> str | None:
        match = self._reference_regex.fullmatch(name)
        return None if match is None else self.ours.format(*match.groups())

    def to_reference(self, name: str) -> str | None:
        match = self._our_regex.fullmatch(name)
        return None if match is None else _FIELD.sub("{}", self.reference).format(*match.groups())


@dataclass(frozen=True)
class Alias:
    """``reference`` is the same tensor as ``stored_as``; files hold either name or both, we write ``stored_as``."""

    reference: str
    stored_as: str


@dataclass(frozen=True)
class Constant:
    """A tensor that carries no information: not kept by us because of ``reason``, written back from ``values``."""

    reference: str
    values: tuple[float, ...]
    shape: Shape
    dtype: Literal["float32", "int64"] | None
    """None: that of the image tokenizer's weights."""
    reason: str
    only_if_scripted: bool = False
    """Present only in files whose image tokenizer was a TorchScript module; written back on request."""


def _same_names(reference_prefix: str, our_prefix: str, names: Sequence[str], store: Store = "policy") -> list[Rename]:
    """Rows for a module whose inner names are the same on both sides."""
    return [Rename(reference_prefix + name, our_prefix + _FIELD.sub("{}", name), store) for name in names]


# --- modules whose inner names are the same on both sides (stock transformers, NVIDIA's Cosmos tokenizer) -------------

_QWEN3_VL_TOWER = (
    "patch_embed.proj.{weight|bias}",
    "pos_embed.weight",
    "blocks.{#}.{norm1|norm2|attn.qkv|attn.proj|mlp.linear_fc1|mlp.linear_fc2}.{weight|bias}",
    "merger.{norm|linear_fc1|linear_fc2}.{weight|bias}",
    "deepstack_merger_list.{#}.{norm|linear_fc1|linear_fc2}.{weight|bias}",
)
_QWEN3_LAYER = (
    "self_attn.{q_proj|k_proj|v_proj|o_proj}.weight",
    "self_attn.{q_norm|k_norm}.weight",
    "mlp.{gate_proj|up_proj|down_proj}.weight",
    "{input_layernorm|post_attention_layernorm}.weight",
)
_INTERNVL_TOWER = (
    "embeddings.{cls_token|position_embeddings}",
    "embeddings.patch_embeddings.projection.{weight|bias}",
    "encoder.layer.{#}.{lambda_1|lambda_2}",
    "encoder.layer.{#}.attention.{q_proj|k_proj|v_proj|projection_layer}.{weight|bias}",
    "encoder.layer.{#}.mlp.{fc1|fc2}.{weight|bias}",
    "encoder.layer.{#}.{layernorm_before|layernorm_after}.{weight|bias}",
)
_INTERNVL_PROJECTOR = ("{layer_norm|linear_1|linear_2}.{weight|bias}",)
_QWEN2_LAYER = (
    "self_attn.{q_proj|k_proj|v_proj}.{weight|bias}",
    "self_attn.o_proj.weight",
    "mlp.{gate_proj|up_proj|down_proj}.weight",
    "{input_layernorm|post_attention_layernorm}.weight",
)
_COSMOS_MIDDLE = (
    "mid.{block_1|block_2}.{norm1|conv1|norm2|conv2}.{weight|bias}",
    "mid.attn_1.{norm|q|k|v|proj_out}.{weight|bias}",
)
_COSMOS_ENCODER = (
    "encoder.{conv_in|norm_out|conv_out}.{weight|bias}",
    "encoder.down.{#}.block.{#}.{norm1|conv1|norm2|conv2|nin_shortcut}.{weight|bias}",
    "encoder.down.{#}.downsample.conv.{weight|bias}",
    *("encoder." + name for name in _COSMOS_MIDDLE),
    "quant_conv.{weight|bias}",
)
_COSMOS_DECODER = (
    "decoder.{conv_in|norm_out|conv_out}.{weight|bias}",
    "decoder.up.{#}.block.{#}.{norm1|conv1|norm2|conv2|nin_shortcut}.{weight|bias}",
    "decoder.up.{#}.upsample.conv.{weight|bias}",
    *("decoder." + name for name in _COSMOS_MIDDLE),
    "post_quant_conv.{weight|bias}",
)


def _expert(stack: str, expert: str, names: Sequence[str]) -> list[Rename]:
    """Decoder layers and final norm: the reference keeps one stack per expert, we keep one list of joint layers."""
    return [
        *_same_names(stack + ".layers.{#}.", "mixture.layers.{}.experts." + expert + ".", names),
        Rename(f"{stack}.norm.weight", f"mixture.final_norms.{expert}.weight"),
    ]


def _foresight_head(name: str) -> list[Rename]:
    """``name`` is what the family calls it."""
    return [
        Rename(f"model.{name}_{{in_proj|out_proj}}.{{weight|bias}}", "foresight_head.{}.{}"),
        Rename("model.{downsample|upsample}_conv.{weight|bias}", "foresight_head.{}.{}"),
        Rename(f"model.{name}_out_layer_norm.{{weight|bias}}", "foresight_head.out_norm.{}"),
    ]


def _cosmos(prefix: str) -> list[Rename | Constant]:
    """The image tokenizer's networks, stored inside the reference policy, kept by us in a state dict of their own."""
    buffers = ("_enc_model.encoder.patcher", "_dec_model.decoder.unpatcher")
    return [
        *_same_names(prefix + "._enc_model.", "", _COSMOS_ENCODER, "image_tokenizer"),
        *_same_names(prefix + "._dec_model.", "", _COSMOS_DECODER, "image_tokenizer"),
        *(
            Constant(
                f"{prefix}.{buffer}.wavelets", (math.sqrt(0.5),) * 2, (2,), None,
                "the Haar filter; TorchScript saves it although it is marked non-persistent", only_if_scripted=True,
            )
            for buffer in buffers
        ),
        *(
            Constant(
                f"{prefix}.{buffer}._arange", (0.0, 1.0), (2,), "int64",
                "indices of the Haar filter; TorchScript saves them although marked non-persistent",
                only_if_scripted=True,
            )
            for buffer in buffers
        ),
    ]  # fmt: skip


_ACTION_HEAD = [
    Rename("model.{state_proj|action_in_proj|action_out_proj}.{weight|bias}", "action_head.{}.{}"),
    Rename("model.action_{time_mlp_in|time_mlp_out}.{weight|bias}", "action_head.{}.{}"),
]

# --- the two tables ---------------------------------------------------------------------------------------------------

_QWEN = "model.qwen3_vl_with_expert."
_QWEN3_VL_ROWS = [
    *_same_names(_QWEN + "und_expert.model.visual.", "vision_language.vision_tower.", _QWEN3_VL_TOWER),
    # Tied in the reference; of the two names its files hold the one that sorts first.
    Rename(_QWEN + "und_expert.lm_head.weight", "vision_language.embed_tokens.weight"),
    Alias(_QWEN + "und_expert.model.language_model.embed_tokens.weight", _QWEN + "und_expert.lm_head.weight"),
    *_expert(_QWEN + "und_expert.model.language_model", "understanding", _QWEN3_LAYER),
    *_expert(_QWEN + "gen_expert", "foresight", _QWEN3_LAYER),
    *_expert(_QWEN + "act_expert", "action", _QWEN3_LAYER),
    *_foresight_head("cosmos"),
    *_ACTION_HEAD,
    *_cosmos("model.cosmos"),
]

_INTERNVL = "model.internvl_with_expert."
_IMAGENET = "ImageNet statistics; the model applies them itself"
_INTERNVL3_ROWS = [
    *_same_names(_INTERNVL + "und_expert.model.vision_tower.", "vision_language.vision_tower.", _INTERNVL_TOWER),
    *_same_names(
        _INTERNVL + "und_expert.model.multi_modal_projector.", "vision_language.projector.", _INTERNVL_PROJECTOR
    ),
    # Not tied in this family: two different tensors, of which the lm_head is never computed.
    Rename(_INTERNVL + "und_expert.lm_head.weight", "vision_language.lm_head.weight"),
    Rename(_INTERNVL + "und_expert.model.language_model.embed_tokens.weight", "vision_language.embed_tokens.weight"),
    *_expert(_INTERNVL + "und_expert.model.language_model", "understanding", _QWEN2_LAYER),
    *_expert(_INTERNVL + "gen_expert.model", "foresight", _QWEN2_LAYER),
    *_expert(_INTERNVL + "act_expert.model", "action", _QWEN2_LAYER),
    *_foresight_head("gen"),
    *_ACTION_HEAD,
    Constant("model.imagenet_mean", IMAGENET_MEAN, (1, 3, 1, 1), "float32", _IMAGENET),
    Constant("model.imagenet_std", IMAGENET_STD, (1, 3, 1, 1), "float32", _IMAGENET),
    *_cosmos("model.cosmos_tokenizer"),
]


@dataclass(frozen=True)
class Translation:
    """Names of one reference file, sorted by what becomes of them. Together the five parts are the whole file."""

    policy: Mapping[str, str]
    """Our name -> the reference name that holds the tensor."""
    image_tokenizer: Mapping[str, str]
    """Our name inside the image tokenizer -> the reference name. Empty if the file holds no image tokenizer."""
    duplicates: Mapping[str, str] = field(default_factory=dict[str, str])
    """Alias present in the file -> the reference name that holds the same tensor (must be equal)."""
    constants: tuple[Constant, ...] = ()
    """Known values present in the file: dropped on purpose, ``Constant.reason`` says why."""

    def __len__(self) -> int:
        return len(self.policy) + len(self.image_tokenizer) + len(self.duplicates) + len(self.constants)


@dataclass(frozen=True)
class ReferenceNames:
    """What a reference file must hold, given our names."""

    policy: Mapping[str, str]
    """Reference name -> our name in the policy."""
    image_tokenizer: Mapping[str, str]
    """Reference name -> our name in the image tokenizer."""
    constants: tuple[Constant, ...]
    aliases: Mapping[str, str]
    """Alias -> stored name: goes into the file's metadata, as the reference's own writer does."""

    @property
    def stored(self) -> set[str]:
        """Every name in the file."""
        return {*self.policy, *self.image_tokenizer, *(constant.reference for constant in self.constants)}


class KeyTable:
    """The rows of one family, in both directions."""

    def __init__(self, family: str, rows: Sequence[Rename | Alias | Constant]) -> None:
        self.family = family
        self.renames = [row for row in rows if isinstance(row, Rename)]
        self.aliases = {row.reference: row.stored_as for row in rows if isinstance(row, Alias)}
        self.constants = {row.reference: row for row in rows if isinstance(row, Constant)}

    def _our_place(self, name: str) -> tuple[Store, str] | None:
        """Where a reference name goes, for the names that are stored by us."""
        name = self.aliases.get(name, name)
        for row in self.renames:
            ours = row.to_ours(name)
            if ours is not None:
                return row.store, ours
        return None

    def _reference_name(self, store: Store, name: str) -> str | None:
        for row in self.renames:
            reference = row.to_reference(name) if row.store == store else None
            if reference is not None:
                return reference
        return None

    def knows(self, name: str) -> bool:
        """Whether a reference name has a row."""
        return name in self.constants or self._our_place(name) is not None

    def to_ours(self, names: Iterable[str]) -> Translation:
        """Sort the names of a reference file into our two state dicts.

        Raises:
            InternVLAError: names without a row, all of them.
        """
        translation, unknown = self._sort(names)
        if unknown:
            raise InternVLAError(self._complaint(_listing("no rule for", unknown), unknown))
        return translation

    def _sort(self, names: Iterable[str]) -> tuple[Translation, list[str]]:
        stores: dict[Store, dict[str, str]] = {"policy": {}, "image_tokenizer": {}}
        duplicates: dict[str, str] = {}
        constants: list[Constant] = []
        unknown: list[str] = []
        present = set(names)
        for name in sorted(present):
            place = self._our_place(name)
            if name in self.constants:
                constants.append(self.constants[name])
            elif place is None:
                unknown.append(name)
            elif self.aliases.get(name) in present:
                duplicates[name] = self.aliases[name]
            else:
                store, ours = place
                stores[store][ours] = name
        return Translation(stores["policy"], stores["image_tokenizer"], duplicates, tuple(constants)), unknown

    def to_reference(
        self, policy: Iterable[str], image_tokenizer: Iterable[str] = (), *, scripted: bool = False
    ) -> ReferenceNames:
        """The inverse of ``to_ours``: the names that a reference file for these tensors must hold.

        Args:
            policy: names inside ``InternVLAA1``.
            image_tokenizer: names inside the image tokenizer.
            scripted: also list the buffers that a TorchScript image tokenizer adds to its file.

        Raises:
            InternVLAError: names without a row, all of them.
        """
        ours: dict[Store, Iterable[str]] = {"policy": policy, "image_tokenizer": image_tokenizer}
        theirs: dict[Store, dict[str, str]] = {"policy": {}, "image_tokenizer": {}}
        unknown: list[str] = []
        for store, names in ours.items():
            for name in names:
                reference = self._reference_name(store, name)
                if reference is None:
                    unknown.append(name)
                else:
                    theirs[store][reference] = name
        if unknown:
            raise InternVLAError(
                f"These tensors have no name in the {self.family} reference checkpoint:\n"
                + _listing("no rule for", unknown)
                + "\nAdd a row to conversion/key_table.py, or leave them out of the export."
            )
        return ReferenceNames(
            policy=theirs["policy"],
            image_tokenizer=theirs["image_tokenizer"],
            constants=tuple(c for c in self.constants.values() if scripted or not c.only_if_scripted),
            aliases={alias: name for alias, name in self.aliases.items() if name in theirs["policy"]},
        )

    def match(
        self, reference: Mapping[str, Shape], policy: Mapping[str, Shape], image_tokenizer: Mapping[str, Shape]
    ) -> Translation:
        """``to_ours`` for a file that must fit a model exactly.

        Args:
            reference: name -> shape of every tensor in the reference file.
            policy: name -> shape of every tensor of ``InternVLAA1``.
            image_tokenizer: name -> shape of every tensor of the image tokenizer. The file may hold all of them or
                none (NVIDIA distributes them separately), but not a part.

        Raises:
            InternVLAError: everything that is unknown, superfluous, missing or misshaped, in one message.
        """
        translation, unknown = self._sort(reference)
        listings = [_listing("no rule for", unknown)]
        found: dict[Store, Mapping[str, str]] = {
            "policy": translation.policy,
            "image_tokenizer": translation.image_tokenizer,
        }
        expected: dict[Store, Mapping[str, Shape]] = {"policy": policy, "image_tokenizer": image_tokenizer}
        missing: list[str] = []
        superfluous: list[str] = []
        misshaped: list[str] = []
        for store in ("policy", "image_tokenizer"):
            superfluous += [theirs for ours, theirs in found[store].items() if ours not in expected[store]]
            if found[store] or store == "policy":
                missing += [self._reference_name(store, ours) or ours for ours in expected[store].keys() - found[store]]
            misshaped += [
                f"{theirs} is {_times(reference[theirs])}, expected {_times(expected[store][ours])}"
                for ours, theirs in found[store].items()
                if ours in expected[store] and reference[theirs] != expected[store][ours]
            ]
        misshaped += [
            f"{alias} is {_times(reference[alias])}, expected {_times(reference[stored])} like {stored}"
            for alias, stored in translation.duplicates.items()
            if reference[alias] != reference[stored]
        ]
        for constant in self.constants.values():
            if constant in translation.constants:
                if reference[constant.reference] != constant.shape:
                    misshaped.append(
                        f"{constant.reference} is {_times(reference[constant.reference])}, "
                        f"expected {_times(constant.shape)}"
                    )
            elif not constant.only_if_scripted:
                missing.append(constant.reference)
        listings += [_listing("not part of this model", superfluous), _listing("missing", missing)]
        listings.append(_listing("wrong shape", misshaped))
        problems = "\n".join(listing for listing in listings if listing)
        if problems:
            raise InternVLAError(self._complaint(problems, unknown))
        return translation

    def _complaint(self, problems: str, unknown: Sequence[str]) -> str:
        """What to do, judging by where the unknown names come from, then the list of problems."""
        advice = "Check that config.json and the weights belong together and that the download is complete."
        relative = [name.removeprefix("model.") for name in unknown]
        other = next((t for t in KEY_TABLES.values() if t is not self and any(map(t.knows, unknown))), None)
        if any(self._reference_name("policy", name) for name in relative):
            advice = (
                "The names are this library's own: load the folder with InternVLAA1Policy.from_pretrained "
                "(--policy.path=<folder>), no conversion is needed."
            )
        elif other is not None:
            advice = f"The names belong to the {other.family} family: use the config.json that came with this file."
        return f"The checkpoint does not fit a {self.family} model. {advice}\n{problems}"


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "a scalar"


def _listing(title: str, names: Iterable[str]) -> str:
    """All names under a title, layers collapsed to ranges so that a whole missing expert stays readable."""
    names = list(names)
    if not names:
        return ""
    return f"  {title} ({len(names)}):\n" + "\n".join(f"    {line}" for line in collapse_indices(names))


def collapse_indices(names: Iterable[str]) -> list[str]:
    """Sort names and write a run over the first index as ``layers.{0-27}.mlp``; nothing is left out.

    >>> collapse_indices(["a.0.w", "a.1.w", "a.3.w", "b"])
    ['a.{0-1,3}.w', 'b']
    """
    groups: dict[tuple[str, str], list[int]] = {}
    lines: list[str] = []
    for name in sorted(set(names)):
        match = re.search(rf"(?<=\.){_INDEX}(?=\.)", name)
        if match is None:
            lines.append(name)
        else:
            groups.setdefault((name[: match.start()], name[match.end() :]), []).append(int(match[0]))
    for (head, tail), indices in groups.items():
        runs: list[list[int]] = []
        for index in sorted(indices):
            if runs and index == runs[-1][1] + 1:
                runs[-1][1] = index
            else:
                runs.append([index, index])
        written = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
        lines.append(head + (written if len(indices) == 1 else "{" + written + "}") + tail)
    return sorted(lines)


KEY_TABLES: dict[str, KeyTable] = {
    "qwen3_vl": KeyTable("qwen3_vl", _QWEN3_VL_ROWS),
    "internvl3": KeyTable("internvl3", _INTERNVL3_ROWS),
}


def key_table(family: str) -> KeyTable:
    """The table of a backbone family.

    Raises:
        InternVLAError: the family has no reference checkpoint ("tiny" is ours alone).
    """
    if family not in KEY_TABLES:
        raise InternVLAError(
            f"There is no reference checkpoint for the {family!r} family. Families with one: {', '.join(KEY_TABLES)}. "
            "Convert a 3b or 2b checkpoint, or load this one with InternVLAA1Policy.from_pretrained."
        )
    return KEY_TABLES[family]
