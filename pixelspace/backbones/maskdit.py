"""MaskDiT (Zheng et al. 2024): a transformer on visible patches alone, and a light one that draws all of them.

Without its decoder it is DiT (Peebles and Xie 2023). Parameter names and arithmetic follow the original, so that its
weights load as they are; its decoder is 512 wide and 8 deep for every encoder, which makes the small ones dearer than
without masks, so that here it is a value of its own. The position tables are kept among the parameters, as there, and
never learnt.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.nn.attention import attend
from pixelspace.nn.embed import sincos_positions, timestep_features
from pixelspace.nn.linear import Linear
from pixelspace.nn.norm import AdaRMSNorm
from pixelspace.nn.text import CrossAttention, Text, TextInput
from pixelspace.types import BackboneConfig, Cond, ParamGroup

TIME_FEATURES = 256


def _check_width(what: str, width: int, depth: int, num_heads: int) -> None:
    if depth < 1 or num_heads < 1 or width < 4 or width % 4 or width % num_heads:
        raise ValueError(
            f"{what}: needs a depth from 1 on and a width that is a multiple of 4 and of num_heads, "
            f"found width {width}, depth {depth}, num_heads {num_heads}"
        )


@value
class Decoder:
    """What sees all positions. A removed one enters as a learnt `mask_token`, or without it as zeros; with
    `takes_cls` the encoder's class token travels on through it."""

    width: int = 512
    depth: int = 8
    num_heads: int = 16
    mask_token: bool = True
    takes_cls: bool = False

    def __post_init__(self) -> None:
        _check_width("Decoder", self.width, self.depth, self.num_heads)


@value
class MaskDiTConfig(BackboneConfig):
    """The whole network, for model-space samples of one `size` (height, width).

    Without a decoder, removed patches come out as zeros. `cls_token` adds a learnt token to the encoder, whose outcome
    conditions the decoder. `text` (None: none) is added to the condition, and with `cross` the encoder's blocks attend
    to it. `feature` is the length of an external feature to condition on (0: none); with
    `encoder_feature` a network that is not in training first encodes x once more and is conditioned on the mean.
    """

    width: int
    depth: int
    num_heads: int
    size: tuple[int, int] = (32, 32)
    patch: int = 2
    channels: int = 4
    num_classes: int = 0
    mlp_ratio: float = 4.0
    decoder: Decoder | None = Decoder()
    cls_token: bool = False
    feature: int = 0
    encoder_feature: bool = False
    text: Text | None = None
    cross: bool = False

    def __post_init__(self) -> None:
        if self.cross and self.text is None:
            raise ValueError("MaskDiTConfig: cross needs text; set text, too")
        _check_width("MaskDiTConfig", self.width, self.depth, self.num_heads)
        if min(self.patch, self.channels) < 1 or min(self.num_classes, self.feature) < 0 or self.mlp_ratio <= 0:
            raise ValueError("MaskDiTConfig: patch, channels, mlp_ratio positive; num_classes, feature not negative")
        if any(side < self.patch or side % self.patch for side in self.size):
            raise ValueError(f"MaskDiTConfig: size {self.size} must be multiples of patch {self.patch}")
        if self.decoder and self.decoder.takes_cls and not self.cls_token:
            raise ValueError("MaskDiTConfig: decoder.takes_cls needs cls_token")

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens down and across."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def keep_patch(self) -> tuple[int, int]:
        return self.patch, self.patch

    @property
    def positions(self) -> dict[str, tuple[int, int]]:
        return {"pos_embed": self.grid, **({"decoder_pos_embed": self.grid} if self.decoder else {})}

    @property
    def entry(self) -> tuple[int, int]:
        return self.channels * self.patch**2, self.width

    @property
    def text_widths(self) -> tuple[int, int] | None:
        return None if self.text is None else (self.text.width, self.text.pooled)

    def build(self) -> "MaskDiT":
        """The network, with fresh weights."""
        return MaskDiT(self)

    def check_size(self, height: int, width: int) -> None:
        """Refuses every size but its own.

        Raises:
            UserError: naming both.
        """
        for name, found, own in zip(("height", "width"), (height, width), self.size, strict=True):
            if found != own:
                raise UserError(
                    f"image {name} {found}: this network's table of positions is for {self.size[0]}x{self.size[1]} "
                    f"samples alone; {name} must be {own} in model space"
                )

    def macs(self, height: int, width: int, kept: int | None = None, tokens: int = 0) -> int:
        """Multiply-accumulates of one forward pass on one image, `kept` patches of it: linear maps and attention."""
        grid, d = height // self.patch * (width // self.patch), self.width
        values = self.patch**2 * self.channels

        def blocks(w: int, depth: int, length: int) -> int:
            mlp = 2 * w * int(w * self.mlp_ratio)
            return depth * (length * (4 * w**2 + mlp + 2 * w * length) + 6 * d * w)

        encoder = grid * values * d + blocks(d, self.depth, (kept or grid) + self.cls_token)
        if self.text and self.cross:
            queries = (kept or grid) + self.cls_token
            cross = queries * (2 * d**2 + 2 * d * tokens) + 2 * tokens * self.text.inner * d + d**2
            encoder += self.depth * cross
        total = self.text.macs(d, tokens) if self.text else 0
        total += encoder * (1 + self.encoder_feature) + (TIME_FEATURES + d + self.num_classes + self.feature) * d
        total += d * d * (self.encoder_feature + (self.cls_token and self.decoder is not None))
        if self.decoder is None:
            return total + 2 * d * d + (kept or grid) * d * values
        w, length = self.decoder.width, grid + self.decoder.takes_cls
        total += 2 * d * d + ((kept or grid) + self.decoder.takes_cls) * d * w
        return total + blocks(w, self.decoder.depth, length) + 2 * d * w + length * w * values


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of x (B, L, D) without weights, then an affine map (B, D) of the condition."""
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale[:, None])


def _modulation(cond_width: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(cond_width, width))


class Attention(nn.Module):
    """Self-attention of x (B, L, D)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(y, "b l (n e) -> b n l e", n=self.num_heads) for y in self.qkv(x).chunk(3, -1))
        return self.proj(rearrange(attend(q, k, v, scale=q.shape[-1] ** -0.5), "b n l e -> b l (n e)"))


class MLP(nn.Module):
    """Two linear maps round a GELU (its tanh form)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then feed-forward, each modulated and gated by the condition (adaLN-Zero); between them, where the
    network has it, attention to text (tokens, mask)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, cond_width: int):
        super().__init__()
        self.attn = Attention(width, num_heads)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = _modulation(cond_width, 6 * width)
        self.cross_attn: CrossAttention | None = None

    def forward(self, x: Tensor, c: Tensor, *text: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, 1)
        x = torch.addcmul(x, gate_a[:, None], self.attn(_modulated(x, shift_a, scale_a)))
        if self.cross_attn is not None:
            x = self.cross_attn(x, c, *text)
        return torch.addcmul(x, gate_m[:, None], self.mlp(_modulated(x, shift_m, scale_m)))


class Head(nn.Module):
    """A modulated norm and a linear map: into the decoder, and out of the network."""

    def __init__(self, width: int, width_out: int, cond_width: int):
        super().__init__()
        self.linear = Linear(width, width_out)
        self.adaLN_modulation = _modulation(cond_width, 2 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(_modulated(x, *self.adaLN_modulation(c).chunk(2, 1)))


class PatchEmbedding(nn.Module):
    """(B, C, H, W) to tokens (B, L, D), row by row."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """c_noise (B,) to (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: Tensor) -> Tensor:
        return self.mlp(timestep_features(c_noise, TIME_FEATURES))


class LabelEmbedding(nn.Module):
    """Class numbers (B,) or rows (B, classes) to (B, D); none is exactly 0."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Linear(num_classes, width, bias=False)

    def forward(self, label: Tensor) -> Tensor:
        table = self.embedding_table.weight
        if label.is_floating_point():
            return label.to(table.dtype) @ table.T
        some = (label >= 0) & (label < table.shape[1])
        return F.embedding(torch.where(some, label, 0), table.T) * some[:, None]


def _table(grid: tuple[int, int], width: int, cls_token: bool) -> nn.Parameter:
    codes = sincos_positions(*grid, width).float()
    return nn.Parameter(F.pad(codes, (0, 0, int(cls_token), 0))[None], requires_grad=False)


class MaskDiT(nn.Module):
    """(x (B, C, H, W), c_noise (B,), cond) to (B, C, H, W); with `keep` (B, L_keep) only those patches are encoded.

    Takes `label` if it has classes, `text`, `text_mask` and `pooled` if it reads text, and `feature` (B, F) if it has
    that; other keys are ignored. Set `checkpointing` to recompute blocks in the backward pass.
    """

    def __init__(self, config: MaskDiTConfig):
        super().__init__()
        d, decoder = config.width, config.decoder
        self.config = config
        self.checkpointing = False
        words = list(config.text.takes) if config.text else []
        self.takes = frozenset(["label"] * (config.num_classes > 0) + ["feature"] * (config.feature > 0) + words)
        self.cls_token = nn.Parameter(torch.empty(1, 1, d)) if config.cls_token else None
        self.pos_embed = _table(config.grid, d, config.cls_token)
        self.x_embedder = PatchEmbedding(config.channels, d, config.patch)
        self.t_embedder = TimeEmbedding(d)
        self.y_embedder = LabelEmbedding(config.num_classes, d) if config.num_classes else None
        self.feature_embedder = nn.Linear(config.feature, d) if config.feature else None
        self.enc_feat_embedder = nn.Linear(d, d) if config.encoder_feature else None

        def blocks(width: int, depth: int, num_heads: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, num_heads, config.mlp_ratio, d) for _ in range(depth))

        self.blocks = blocks(d, config.depth, config.num_heads)
        self.decoder_blocks = nn.ModuleList()
        if decoder is not None:
            self.decoder_pos_embed = _table(config.grid, decoder.width, decoder.takes_cls)
            self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width)) if decoder.mask_token else None
            self.cls_token_embedder = nn.Linear(d, d) if config.cls_token else None
            self.decoder_layer = Head(d, decoder.width, d)
            self.decoder_blocks = blocks(decoder.width, decoder.depth, decoder.num_heads)
        self.final_layer = Head(decoder.width if decoder else d, config.patch**2 * config.channels, d)
        self._initialise()
        self.text_in = TextInput(config.text, d) if config.text else None
        if config.text and config.cross:
            for block in self.blocks:
                norm, head_dim = AdaRMSNorm(d, d), d // config.num_heads
                block.cross_attn = CrossAttention(norm, d, config.text.inner, head_dim)  # type: ignore[assignment]

    def _initialise(self) -> None:
        """As the original: all output heads and gates start at zero, so that a fresh network says nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        proj = self.x_embedder.proj
        assert proj.bias is not None
        nn.init.xavier_uniform_(proj.weight.view(proj.weight.shape[0], -1))
        nn.init.zeros_(proj.bias)
        small = [self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.feature_embedder, self.enc_feat_embedder]
        small += [self.y_embedder.embedding_table if self.y_embedder is not None else None]
        tokens = [self.cls_token]
        if self.config.decoder is not None:
            small.append(self.cls_token_embedder)
            tokens.append(self.mask_token)
            nn.init.zeros_(self.decoder_layer.linear.weight)
        for weight in [*(module.weight for module in small if module is not None), *tokens]:
            if weight is not None:
                nn.init.normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block | Head):
                linear = module.adaLN_modulation[1]
                assert isinstance(linear, nn.Linear)
                nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def units(self) -> list[nn.Module]:
        """The repeated blocks, in order of use: the units of checkpointing and sharding."""
        return [*self.blocks, *self.decoder_blocks]

    def param_groups(self) -> list[ParamGroup]:
        """One rate for all that is learnt; vectors, tokens and embeddings do not decay."""
        learnt = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        embeddings = ("mask_token", "cls_token", "t_embedder", "y_embedder")
        decays = {name for name, p in learnt if p.ndim > 1 and not name.startswith(embeddings)}
        names = [name for name, _ in learnt]
        groups = [ParamGroup(tuple(n for n in names if (n in decays) == decay), 1.0, decay) for decay in (True, False)]
        return [group for group in groups if group.names]

    def _check(self, x: Tensor, cond: Cond, keep: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise UserError(f"expected x (B, {self.config.channels}, H, W), found {tuple(x.shape)}")
        self.config.check_size(*x.shape[2:])
        for key in sorted(self.takes - cond.keys()):
            raise UserError(f"this network needs cond[{key!r}]; found {sorted(cond) or 'nothing'}")
        if keep is not None and (keep.ndim != 2 or len(keep) != len(x) or keep.shape[1] < 1):
            raise UserError(f"expected keep (B, L_keep) with at least one patch, found {tuple(keep.shape)}")

    def _run(self, blocks: nn.ModuleList, x: Tensor, *given: Tensor) -> Tensor:
        for block in blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, *given, use_reentrant=False) if again else block(x, *given)
        return x

    def _condition(self, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        """The condition (B, D), and the text that blocks attend to, if they do."""
        c, text = self.t_embedder(c_noise), ()
        if self.text_in is not None:
            *words, summary = self.text_in(cond)
            c, text = c + summary, tuple(words) if self.config.cross else ()
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond["label"])
        if self.feature_embedder is not None:
            c = c + self.feature_embedder(cond["feature"])
        return c, *text

    def _encoded(self, x: Tensor, given: tuple[Tensor, ...], keep: Tensor | None) -> Tensor:
        """Tokens (B, L_keep, D), after the class token if there is one."""
        tokens = self.x_embedder(x) + self.pos_embed[:, int(self.config.cls_token) :]
        if keep is not None:
            tokens = tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[2]))
        if self.cls_token is not None:
            cls = self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([cls.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], 1)
        return self._run(self.blocks, tokens, *given)

    def _mean(self, tokens: Tensor) -> Tensor:
        """(B, D) layer norm of the tokens' mean, without the class token."""
        mean = tokens[:, int(self.config.cls_token) :].mean(1)
        return F.layer_norm(mean, mean.shape[-1:], eps=1e-6)

    def encode(self, x: Tensor, c_noise: Tensor, cond: Cond, keep: Tensor | None = None) -> Tensor:
        """(B, D) features: the encoder's tokens, all or those kept, averaged and normalised."""
        return self._mean(self._encoded(x, self._condition(c_noise, cond), keep))

    def _restored(self, tokens: Tensor, keep: Tensor | None, fill: Tensor | None) -> Tensor:
        """All L tokens: the kept ones in their places, and `fill` (1, 1, D), or zeros, in the others."""
        if keep is None:
            return tokens
        b, _, width = tokens.shape
        length = self.config.grid[0] * self.config.grid[1]
        if fill is None:
            whole = tokens.new_zeros(b, length, width)
        else:
            whole = fill.to(tokens.dtype).expand(b, length, width)
        return whole.scatter(1, keep[:, :, None].expand(-1, -1, width), tokens)

    def _decoded(self, tokens: Tensor, c: Tensor, keep: Tensor | None) -> Tensor:
        decoder, cls = self.config.decoder, int(self.config.cls_token)
        assert decoder is not None
        if self.cls_token_embedder is not None:
            outcome = F.layer_norm(tokens[:, 0], tokens.shape[-1:], eps=1e-6)
            c = c + self.cls_token_embedder(outcome)
        tokens = self.decoder_layer(tokens if decoder.takes_cls else tokens[:, cls:], c)
        travels = int(decoder.takes_cls)
        head, tokens = tokens[:, :travels], self._restored(tokens[:, travels:], keep, self.mask_token)
        tokens = torch.cat([head, tokens], 1) if travels else tokens
        tokens = self._run(self.decoder_blocks, tokens + self.decoder_pos_embed, c)
        return self.final_layer(tokens, c)[:, travels:]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond, keep: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling():
            self._check(x, cond, keep)
        c, *text = self._condition(c_noise, cond)
        if self.enc_feat_embedder is not None:
            if not self.training:
                c = c + self.enc_feat_embedder(self._mean(self._encoded(x, (c, *text), None)))
            elif not self.config.feature and "feature" in cond:
                c = c + self.enc_feat_embedder(cond["feature"])
        tokens = self._encoded(x, (c, *text), keep)
        if self.config.decoder is not None:
            out = self._decoded(tokens, c, keep)
        else:
            out = self.final_layer(tokens[:, int(self.config.cls_token) :], c)
            out = self._restored(out, keep, None)
        h, w, p = *self.config.grid, self.config.patch
        return rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)
