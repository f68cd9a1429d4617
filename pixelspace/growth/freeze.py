"""Parts of a network that stay as they are: no gradients of their weights, no dropout; gradients pass through them."""

from collections.abc import Sequence

from torch import nn

from pixelspace.errors import UserError
from pixelspace.growth.names import hint, matching


def freeze(network: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of the parameters that the patterns cover, which from now on do not learn.

    Parts that hold nothing else leave training mode.

    Raises:
        UserError: a pattern that covers no parameter, or nothing would be left to learn.
    """
    learnt = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    frozen = []
    for pattern in patterns:
        covered = matching(pattern, learnt)
        if not covered:
            raise UserError(f"freeze: {pattern!r} covers nothing of the network; {hint(pattern, learnt.keys())}")
        frozen += covered
    if frozen and len(set(frozen)) == len(learnt):
        raise UserError(
            f"freeze: {', '.join(map(repr, patterns))} cover all {len(learnt)} parameters; leave some to learn; "
            f"{hint('', learnt.keys())}"
        )
    for name in frozen:
        learnt[name].requires_grad_(False)
    for module in network.modules():
        own = list(module.parameters())
        if frozen and own and not any(parameter.requires_grad for parameter in own):
            module.eval()
    return tuple(dict.fromkeys(frozen))
